"""Load on a server that speaks OpenAI's protocol, and what it answers: `python -m serving.bench.client`.

It imports no jax and needs no tokenizer, so it starts at once and leaves the cores to the server.
"""
