"""The method (`neutral`), where it goes in a model (`places`), its settings, and how PEFT carries it (`attach`)."""

# Importing PEFT imports `attach` (see `registration`). Done here, before any file of this folder is begun, so that
# nobody meets one of them half made.
import peft as peft
