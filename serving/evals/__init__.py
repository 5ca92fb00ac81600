"""Our models behind the evaluations of `mixattn.evals`: the arena's engine process, and its demonstration."""
