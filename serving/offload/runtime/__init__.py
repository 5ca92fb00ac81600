"""Runs a mixture model larger than the memory it may use: programs by kind of layer, page buffers, passes."""
