"""What to expect of a run before it is paid for: its texts, its backbone and a few real steps."""
