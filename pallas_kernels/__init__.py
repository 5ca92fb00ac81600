"""How the inner loops run: one folder an operation."""
