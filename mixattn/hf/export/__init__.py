"""Code that is written into exported checkpoints and runs elsewhere, never here: torch is no dependency."""
