"""An extension in forms that other programs load, each checked against the live model before it takes its name."""
