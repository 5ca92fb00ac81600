"""A small model, its uncached decoding as the oracle, and engines that share compiled programs."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from mixattn import ModelConfig, Transformer
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.engine.invariants import check_idle
from serving.engine.programs import Programs
from serving.request import Request, Sampling

WIRING = "0s_0s_2_3s_3s_2"
VOCAB = 64
LONGEST = 64  # tokens of a request


@functools.cache
def model(wiring: str = WIRING, window: int = 12, **more) -> Transformer:
    config = ModelConfig(
        n_layers=more.pop("n_layers", len(wiring.split("_"))),
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=64,
        vocab_size=VOCAB,
        kv_wiring=wiring,
        window=window,
        **more,
    )
    return Transformer(config, rngs=nnx.Rngs(3))


@functools.cache
def _forward(net: Transformer):
    graphdef, params = nnx.split(net)
    run = jax.jit(lambda params, tokens_BT: nnx.merge(graphdef, params)(tokens_BT))
    return functools.partial(run, params)


def logits(tokens, net: Transformer | None = None) -> np.ndarray:
    """logits_TV of a whole sequence, nothing cached."""
    padded = np.zeros((1, LONGEST), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_forward(net or model())(padded)[0, : len(tokens)])


def teacher_forced(prompt, n: int, net: Transformer | None = None) -> list[int]:
    """Greedy decoding without any cache: the whole sequence anew for each token."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(np.argmax(logits(tokens, net)[-1])))
    return tokens[len(prompt) :]


_programs: dict[tuple, Programs] = {}

# What the shared programs can do; an engine asks for this or less.
MOST = Limits(chunk_tok=48, step_tok=48, decode_steps=(8, 4, 1))


def engine(
    net: Transformer | None = None, *, log=None, clock=None, decode=None, rich=False, **more
) -> Engine:
    """An engine of 4 slots and pages of 4 tokens; `rich`: with penalties and log-probabilities."""
    net = net or model()
    limits = more.pop("limits", Limits(chunk_tok=16, step_tok=32))
    extras = {"penalties": True, "logprobs": 5, "prompt_logprobs": True} if rich else {}
    common = {
        "max_slots": 4,
        "page_size": more.pop("page_size", 4),
        "max_request_tok": LONGEST,
        "prefill_rows": (4,),
        "decode_rows": more.pop("decode_rows", ()),
        "num_pages": more.pop("num_pages", 65),
        "window_pages": more.pop("window_pages", 129),
        "kv_dtype": more.pop("kv_dtype", ""),
    }
    if "keep" in more:
        common["keep"] = more.pop("keep")
    config = EngineConfig(limits=limits, **common, **extras, **more)
    key = net.config, repr(common), rich
    if key not in _programs:
        _programs[key] = Engine(net, EngineConfig(limits=MOST, **common, **extras)).programs
    hears = {"log": log} if log else {}
    hears |= {"clock": clock} if clock else {}
    return Engine(net, config, decode=decode, programs=_programs[key], **hears)


def workload(seed=0, n=10, **sampling) -> list[Request]:
    """Requests of three clients, every third one with a common beginning."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(0, VOCAB, 20).tolist()
    requests = []
    for i in range(n):
        own = rng.integers(0, VOCAB, rng.integers(1, 25)).tolist()
        prompt = stem + own if i % 3 == 0 else own
        given = Sampling(max_tokens=int(rng.integers(1, 18)))
        requests.append(
            Request(client="abc"[i % 3], prompt_ids=prompt, sampling=dataclasses.replace(given, **sampling))
        )
    return requests


def check_against_teacher(requests, outputs, net: Transformer | None = None) -> None:
    for request, output in zip(requests, outputs, strict=True):
        want = teacher_forced(request.prompt_ids, request.sampling.max_tokens, net)
        assert output.output_ids == want, f"{output.id}: prompt of {len(request.prompt_ids)}"
        assert output.finish_reason == "length"


def finish(eng: Engine) -> list:
    """Steps until nothing is left; all deltas, in order, and nothing leaks."""
    deltas = []
    while eng.live:
        deltas += eng.step()
    check_idle(eng)
    return deltas


def byte_text(ids) -> str:
    """A decoder whose token ids are bytes; parts of characters decode to U+FFFD."""
    return bytes(ids).decode("utf-8", "replace")
