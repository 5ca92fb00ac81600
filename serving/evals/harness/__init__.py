"""lm-evaluation-harness over our engine, with any budget of keys; `make lm-eval` runs it."""
