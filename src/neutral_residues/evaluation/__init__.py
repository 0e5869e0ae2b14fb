"""Backbone and extended model on the same text and tasks, and why a number moved."""
