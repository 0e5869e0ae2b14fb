"""Code that works and is tested, but has not been shown to help. It is not part of the public API,
and may be removed."""
