"""The method as a PEFT tuner: `neutral.py` is the paper, `config.py`, `layer.py` and `model.py` are
PEFT's parts."""

# PEFT's import registers this tuner (registration.py); it must come before any of our files is half
# imported.
import peft  # noqa: F401
