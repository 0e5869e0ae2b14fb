"""The files that runs write: output folder, record and model card. No torch."""
