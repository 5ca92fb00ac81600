"""The commands of `python -m serving.metropolis`, one module each, whose docstring is its `--help`."""
