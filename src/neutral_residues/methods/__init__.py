"""The methods that are compared: one table, and what PEFT does not have."""
