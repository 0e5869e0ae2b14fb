"""Every method on the same budget, rows and evaluation: cells, their order and cost."""
