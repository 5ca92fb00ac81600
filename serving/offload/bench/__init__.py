"""Speed of the runtime as ratios within one run; see `python -m serving.offload bench --help`."""
