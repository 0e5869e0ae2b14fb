"""From a checked run to a trained model: setup, loop, local loss, checkpoints."""
