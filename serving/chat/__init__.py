"""A chat on the terminal, over the engine."""
