"""What a KV budget costs on long contexts: needles, variables, counted words, documents, nats.

The tasks are made from word lists of this room and fixed seeds; nothing is downloaded. A task grows its
context to a length in tokens of the model at hand. `mixattn.evals.longcontext.command` is the command line.

Source of the task kinds: RULER (arXiv 2404.06654); the texts and word lists are our own.
"""
