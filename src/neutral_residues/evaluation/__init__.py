"""Measures backbone and extended model on the same text and tasks, and explains changes."""
