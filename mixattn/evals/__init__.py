"""Model quality: language models behind one protocol (`mixattn.evals.llm`). Imports no jax."""
