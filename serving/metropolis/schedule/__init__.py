"""Who may run when: distance rules, spaces, the dependency graph. No clock, no jax."""
