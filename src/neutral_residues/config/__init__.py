"""The files that users write: run file and comparison file. No torch."""
