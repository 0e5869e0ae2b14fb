"""The method as a PEFT tuner: `neutral.py` is the paper; `config.py`, `layer.py` and `model.py` are
divided as in PEFT."""

# Importing PEFT registers this tuner (registration.py), which imports modules of this folder: so it
# comes first, before one of them is half imported.
import peft  # noqa: F401
