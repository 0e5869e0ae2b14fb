"""The formats in which an extension can be exported, and the table of them."""
