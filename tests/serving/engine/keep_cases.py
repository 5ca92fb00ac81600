"""An engine that evicts beside its oracle: tokens, and the keys held after every step."""

import dataclasses
import functools

import numpy as np

from mixattn.keep import Keep
from serving.config import KeepSettings, Limits
from serving.request import RequestKeep
from tests.serving.engine.dense_keep import DenseKeep
from tests.serving.tiny import engine, model, workload

SLAB = KeepSettings(slab_tok=12, recent_tok=4, scorers=("snapkv", "streaming"), window=3, pool=3, snapshots=4)


@functools.cache
def oracle(net, settings, slab, scorer, prompt, n):
    keep = _keep(settings, scorer)
    return DenseKeep(net, keep, slab.cut, prompt, n)


def _keep(settings, scorer) -> Keep:
    names = ("recent", "sinks", "promotion", "scope", "allocation", "window", "pool", "seed")
    when = "prompt" if scorer in ("snapkv", "expected") else settings.when
    given = {name: getattr(settings, name) for name in names}
    return Keep(scorer=scorer, budget=settings.slab_tok, when=when, **given)


class Settings:
    """Hashable settings, for the oracle's cache."""

    def __init__(self, settings: KeepSettings):
        self._settings, self._key = settings, repr(settings)

    def __getattr__(self, name):
        return getattr(self._settings, name)

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return self._key == other._key


def expected(eng, request) -> DenseKeep | None:
    """The oracle of a request; None if it keeps everything."""
    slab = eng.slabs.plan(request)
    if slab is None:
        return None
    name = (request.keep.scorer if request.keep else "") or eng.config.keep.scorer
    settings = Settings(dataclasses.replace(eng.config.keep))
    prompt, n = tuple(request.prompt_ids), request.sampling.max_tokens
    return oracle(eng.test_model, settings, slab, name, prompt, n)


def kept_engine(net=None, keep=SLAB, **more):
    """An engine of `tests.serving.tiny` with slabs of 12 keys."""
    net = net or model()
    limits = more.pop("limits", Limits(chunk_tok=16, step_tok=32))
    eng = engine(net, keep=keep, limits=limits, debug=more.pop("debug", True), **more)
    eng.test_model = net
    return eng


def check_keep_sets(eng, requests: dict) -> int:
    """Compares the slabs of settled rows with the oracle; how many were compared."""
    at_Z, compared = np.asarray(eng.state.rows.position_B), 0
    for name, req in eng.scheduler.running.items():
        if req.kv is None or not req.kv.settled:
            continue
        want = expected(eng, requests[name.split("#")[0]])
        at = int(at_Z[req.slot])
        if at not in want.kept:  # a row that ran on behind its end, in a step that was started ahead
            continue
        for owner, slab in eng.state.kept.slabs.items():
            position_KR = np.asarray(slab.position_ZKR[req.slot])
            got = [set(row[row >= 0].tolist()) for row in position_KR]
            assert got == want.kept[at][owner], f"{name}: owner {owner} after {at} tokens"
            compared += 1
    return compared


def serve(eng, requests, between=lambda eng: None) -> list:
    """Serves the requests and compares every step with the oracle; outputs in the order of the requests."""
    requests = [dataclasses.replace(r, id=r.id or f"q{i}") for i, r in enumerate(requests)]
    by_id = {r.id: r for r in requests}
    for request in requests:
        eng.submit(request)
    outputs, compared = {}, 0
    while eng.live:
        outputs |= {(d.id, d.index): d.output for d in eng.step() if d.output}
        if eng._in_flight is None:
            compared += check_keep_sets(eng, by_id)
        between(eng)
    assert compared > 0
    for request in requests:
        want = expected(eng, request)
        for index in range(request.sampling.n):
            output = outputs[request.id, index]
            if want is not None and output.finish_reason == "length":
                assert output.output_ids == want.output_ids, f"{request.id}#{index}"
    return [outputs[r.id, 0] for r in requests]


def asked(requests, **keep) -> list:
    return [dataclasses.replace(r, keep=RequestKeep(**keep)) for r in requests]


def mixed(seed=0, n=8) -> list:
    """A workload of which every third request names another scorer, or keeps everything."""
    kinds = [None, RequestKeep(scorer="streaming"), RequestKeep(budget=9)]
    return [
        dataclasses.replace(r, keep=kinds[i % len(kinds)]) for i, r in enumerate(workload(seed=seed, n=n))
    ]
