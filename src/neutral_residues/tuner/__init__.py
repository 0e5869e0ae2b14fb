"""The method as a PEFT tuner: `neutral.py` is the paper; config, layer, model are PEFT's parts."""

# PEFT's import registers this tuner (registration.py): before any of our files is half imported.
import peft  # noqa: F401
