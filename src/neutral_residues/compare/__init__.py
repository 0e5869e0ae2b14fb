"""Every method on the same budget, rows and evaluation: cells, the order they run in, what they
will cost."""
