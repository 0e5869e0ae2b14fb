"""A promise with a number about text that nobody has seen: thresholds on finished gates."""
