"""Tasks of lm-eval and our own, measured on the same items for both models."""
