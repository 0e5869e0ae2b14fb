"""The demo: an English model learns French on a CPU, with model and texts from this folder."""
