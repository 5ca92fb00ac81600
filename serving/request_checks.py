"""Whether a request can be served at all, from the sizes of model and engine: before anything is loaded.

Imports no jax.
"""

from mixattn.spec import ModelConfig
from serving.config import STOP_IDS, EngineConfig
from serving.request import Request


def check(request: Request, model: ModelConfig, config: EngineConfig, *, decodes: bool) -> None:
    """Checks everything but the engine's memory.

    Args:
      decodes: whether the engine can turn ids into text.

    Raises:
      ValueError: names the request, what it asks for and the limit.
    """
    check_features(request, model, config, decodes=decodes)
    need = len(request.prompt_ids) + request.sampling.max_tokens
    if need > config.max_request_tok:
        raise ValueError(
            f"request {request.id!r} of {request.client!r} needs {need} tokens, the engine serves at most "
            f"{config.max_request_tok} a request"
        )


def check_features(request: Request, model: ModelConfig, config: EngineConfig, *, decodes: bool) -> None:
    """Checks what the request names and needs: tokens, positions, stops, penalties, log-probabilities."""
    id, sampling = request.id, request.sampling
    stops = sampling.stop_ids + (() if sampling.ignore_eos else config.eos_ids)
    if len(stops) > STOP_IDS:
        raise ValueError(f"request {id!r} has {len(stops)} stop ids; at most {STOP_IDS}")
    ids = (*request.prompt_ids, *request.resume_ids, *request.forced_ids, *sampling.logit_bias, *stops)
    strange = min(ids) if min(ids) < 0 else max(ids)
    if not 0 <= strange < model.vocab_size:
        raise ValueError(f"request {id!r} names token {strange} of a vocabulary of {model.vocab_size}")
    need = len(request.prompt_ids) + sampling.max_tokens
    if model.positions == "learned" and need > model.max_positions:
        raise ValueError(
            f"request {id!r} needs {need} positions; the model has learned {model.max_positions}"
        )
    if sampling.stop and not decodes:
        raise ValueError(f"request {id!r} has stop texts, but the engine was given no `decode`")
    if request.keep is not None and not request.keep.everything and not config.keep.slab_tok:
        raise ValueError(f"request {id!r} asks for {request.keep}, but config.keep.slab_tok is 0")
    if request.keep is not None and (name := request.keep.scorer) and config.keep.slab_tok:
        known = (config.keep.scorer, *config.keep.scorers)
        if name not in known:
            raise ValueError(
                f"request {id!r} asks for the scorer {name!r}; compiled in are {', '.join(known)}"
            )
    if request.forced_ids and not config.keep.slab_tok:
        raise ValueError(
            f"request {id!r} gives {len(request.forced_ids)} tokens of its output (forced_ids), which an "
            "engine that evicts can read, but config.keep.slab_tok is 0; prompt_logprobs score a text there"
        )
    if request.grammar is not None and not config.grammar:
        raise ValueError(f"request {id!r} has a grammar, but config.grammar is off")
    if sampling.has_penalties and not config.penalties:
        raise ValueError(f"request {id!r} asks for penalties or a bias, but config.penalties is off")
    if sampling.top > (most := min(config.logprobs, model.vocab_size)):
        raise ValueError(f"request {id!r} asks for {sampling.top} logprobs; config.logprobs is {most}")
    if sampling.prompt_logprobs is not None and not config.prompt_logprobs:
        raise ValueError(f"request {id!r} asks for prompt_logprobs, which config does not compile in")
