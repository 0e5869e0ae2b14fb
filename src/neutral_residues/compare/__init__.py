"""Comparisons of methods with the same budget, training rows and evaluation."""
