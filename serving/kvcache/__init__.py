"""KV cache bookkeeping on the host: page allocation, prefix tree, reservations. No jax, no clock."""
