"""Tasks of lm-eval and of our own, both models on the same items."""
