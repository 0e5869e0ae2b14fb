"""Several extensions made into one folder: side by side, or their average."""
