"""One file for each form that an extension can be written in."""
