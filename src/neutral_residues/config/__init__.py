"""The files that a user writes: the run file and the comparison file. No torch."""
