"""An English model learns French on a CPU, with everything it needs in this folder."""
