"""The command line: a file for each command, which does all of its printing."""
