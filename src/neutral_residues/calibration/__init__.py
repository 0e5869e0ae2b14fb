"""Calibration: thresholds on the gates of a trained extension, with a promise for new text."""
