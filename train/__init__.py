"""The trainer: data, objective, optimizer, loop, checkpoints; its experiments are in `train.experiments`."""
