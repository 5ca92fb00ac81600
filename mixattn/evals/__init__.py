"""How good is it? Language models and verifiers are function types here; nothing imports jax."""
