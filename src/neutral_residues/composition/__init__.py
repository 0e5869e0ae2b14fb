"""Combines several extensions in one folder: as adapters of one model, or as their average."""
