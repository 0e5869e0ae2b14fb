"""Tasks that both sides are given: lm-eval's own, minimal pairs, and cloze made from held-out text."""
