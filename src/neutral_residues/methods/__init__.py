"""The methods that can be trained and compared: a table of them, and those that PEFT lacks."""
