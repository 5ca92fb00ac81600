"""Real clients of OpenAI's protocol against our server: `make clients`.

Each script stands alone, takes URL and MODEL, prints one line `name: ok, what was checked`, and fails with a
traceback when something is wrong. Those of other packages run in .venv-clients, which has none of ours.
"""
