"""Where weights come from: data, objective, optimizer, loop, checkpoints."""
