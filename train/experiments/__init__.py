"""Experiments that train many small models: key-value recall, loss by K/V wiring, uptraining."""
