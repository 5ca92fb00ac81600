"""Clover (arXiv 2310.17807): do code, annotation and docstring of a Dafny method say the same?

    report = await check(triple, Tools(model, verify, run), k=3)
    report.accepted, report.edges["doc2anno"].reason

A model rewrites each of the three from another one; the verifier, unit tests or the model compare the result
with what was given. Six such checks must pass.
"""
