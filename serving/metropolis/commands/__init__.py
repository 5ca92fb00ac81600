"""The commands of `python -m serving.metropolis`, one file each: flags in, one call, words out."""
