"""Documents -> token streams on disk -> rows in a fixed order."""
