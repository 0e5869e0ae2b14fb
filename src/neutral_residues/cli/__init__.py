"""The command line: one file for each command. Everything that is printed is printed here."""
