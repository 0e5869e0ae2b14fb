"""Advice before a run is started, from its texts, its backbone and a few real steps."""
