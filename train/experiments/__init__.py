"""Experiments that train many small models: recall, language modelling by wiring, uptraining."""
