"""An engine's slabs, and how each request is cut: `mixattn.keep` beside an `EngineConfig`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mixattn.cache.kept import check_model, full_owners
from mixattn.cache.kept_pages import PagedSlab, SlabRules
from mixattn.keep import SCORERS, Keep, Scorer
from mixattn.keep.scorers.protocol import ALL
from mixattn.spec import ModelConfig
from serving.config import EngineConfig, KeepSettings
from serving.engine.device_state import SlabState
from serving.engine.plan import StepPlan, StepResult
from serving.engine.stats import EngineCounters
from serving.kvcache.slab_plan import SlabPlan
from serving.request import Request, RequestId, RequestKeep

# Fields that `KeepSettings` and `Keep` have in common.
_OF_KEEP = (
    "share_of",
    "recent",
    "sinks",
    "when",
    "promotion",
    "scope",
    "positions",
    "allocation",
    "window",
    "pool",
    "seed",
)


@dataclass(frozen=True)
class SlabLayout:
    """Slabs of one engine.

    Attributes:
      settings: as configured.
      keeps: by scorer compiled in, how it cuts; the first is the default.
      rules: for the programs.
      owners: the full owners. most: keys that each keeps at most.
      layers_for_scores: layers that compute all tokens of a prompt only because their queries vote.
    """

    settings: KeepSettings
    keeps: dict[str, Keep]
    rules: SlabRules
    owners: tuple[int, ...]
    most: tuple[int, ...]
    layers_for_scores: int

    @classmethod
    def of(cls, model: ModelConfig, config: EngineConfig) -> "SlabLayout":
        """The layout of an engine that evicts.

        Raises:
          ValueError: model and settings do not go together.
        """
        settings = config.keep
        keeps = {name: _keep(settings, name) for name in dict.fromkeys((settings.scorer, *settings.scorers))}
        for name, keep in keeps.items():
            check_model(keep, model)
            if type(keep.ranking).votes is not Scorer.votes:
                raise ValueError(
                    f"the scorer {name} reads all queries of a prompt at once; an engine computes prompts in"
                    " chunks, so its scores must be sums over queries"
                )
        default = keeps[settings.scorer]
        owners = tuple(full_owners(model))
        most = tuple(default.layer_total(settings.slab_tok, i, len(owners)) for i in range(len(owners)))
        rules = SlabRules(
            tuple(keep.ranking for keep in keeps.values()),
            default.scope == "all_consumers",
            default.promotion == "always",
            model if default.positions == "rolling" else None,
        )
        return cls(settings, keeps, rules, owners, most, _layers_for_scores(model, rules))

    def state(self, model: ModelConfig, config: EngineConfig, votes_tok: int) -> SlabState:
        """Empty slabs, and rows of votes for prompts of at most `votes_tok` tokens."""
        dtype = config.kv_dtype or model.dtype
        slabs = {
            owner: PagedSlab.init(model, config.max_slots, most, config.page_size, dtype)
            for owner, most in zip(self.owners, self.most)
        }
        shape = (1 + self.working_votes(config) + self.settings.snapshots, model.n_kv_heads, votes_tok)
        votes = {owner: jnp.zeros(shape, jnp.float32) for owner in self.owners} if self.rules.votes else {}
        return SlabState(slabs, votes, jnp.zeros(config.max_slots, jnp.int32))

    def working_votes(self, config: EngineConfig) -> int:
        """Prompts that collect scores at once."""
        return min(self.settings.prefilling, config.max_slots)

    def plan(self, request: Request) -> SlabPlan | None:
        """How a request is cut; None: it keeps everything, in full pages.

        Raises:
          ValueError: it asks for what is not compiled in, or for more than a slab holds.
        """
        asked, prompt, new = (
            request.keep or RequestKeep(),
            len(request.prompt_ids),
            request.sampling.max_tokens,
        )
        name = asked.scorer or self.settings.scorer
        if name not in self.keeps:
            raise ValueError(
                f"request {request.id!r} asks for the scorer {name!r}; compiled in are "
                f"{', '.join(self.keeps)}"
            )
        final = prompt + new - 1  # the last output is never written
        if asked.everything and final > min(self.most):
            if not self.settings.full_decode:
                raise ValueError(
                    f"request {request.id!r} keeps all of its {final} tokens, a slab holds {min(self.most)};"
                    " keep.full_decode is off"
                )
            return None
        keep = self.keeps[name]
        totals = self.most if asked.everything else self._totals(request.id, keep, asked, prompt, new)
        number = list(self.keeps).index(name)
        if final <= min(totals):  # it never evicts: nothing to score
            return SlabPlan(number, tuple((most - 1, 1, 0) for most in self.most))
        reads = keep.ranking.reads
        return SlabPlan(
            number,
            tuple(_limits(keep, total) for total in totals),
            grows=keep.when == "prompt",
            history=reads == ALL,
            last_queries=min(max(0, reads), prompt),
        )

    def _totals(self, id: str, keep: Keep, asked: RequestKeep, prompt: int, new: int) -> Sequence[int]:
        """Keys that each full owner's prompt is cut to."""
        L = len(self.owners)
        budget = self.settings.budget if asked.budget is None else asked.budget
        keep = dataclasses.replace(keep, budget=budget)
        keep.check_rows([prompt], new, L)
        wanted = [int(keep.layer_total(keep.total(prompt, new), i, L)) for i in range(L)]
        final = prompt + new - 1
        if asked.budget is not None and any(min(want, final) > most for want, most in zip(wanted, self.most)):
            raise ValueError(
                f"request {id!r} asks for {max(wanted)} keys a layer, a slab holds {max(self.most)}"
            )
        totals = [min(want, most) for want, most in zip(wanted, self.most)]
        for total, most in zip(totals, self.most):
            held = min(prompt, total) + new - 1
            if keep.when == "prompt" and held > most:
                raise ValueError(
                    f'request {id!r} cuts its prompt to {total} keys and grows to {held} (when="prompt"), '
                    f"a slab holds {most}"
                )
        least = min(totals)
        try:
            dataclasses.replace(keep, budget=least)
        except ValueError as why:
            raise ValueError(f"request {id!r}, cut to the slab: {why}") from why
        return totals


def _keep(settings: KeepSettings, scorer: str) -> Keep:
    given = {name: getattr(settings, name) for name in _OF_KEEP}
    if scorer != settings.scorer and scorer in SCORERS and not SCORERS[scorer].decodes:
        given["when"] = "prompt"
    return Keep(scorer=scorer, budget=settings.budget, **given)


def _limits(keep: Keep, total: int) -> tuple[int, int, int]:
    heavy, recent, sinks = keep.split(total)
    return int(heavy), int(recent), int(sinks)


def _layers_for_scores(model: ModelConfig, rules: SlabRules) -> int:
    """Layers above the last owner that prefill would run on one token per row, and its owner's attention."""
    last = model.owners[-1]
    above = [layer.index for layer in model.layers if layer.index >= last and rules.listens(layer)]
    return above[-1] - last + 1 if above and rules.reads_every_query else 0


def abstract_state(layout: SlabLayout, model: ModelConfig, config: EngineConfig, votes_tok: int) -> SlabState:
    """The shapes of `SlabLayout.state`, in place of arrays."""
    return jax.eval_shape(lambda: layout.state(model, config, votes_tok))


def count(
    counts: EngineCounters, plan: StepPlan, produced: Mapping[RequestId, StepResult], heads: int
) -> None:
    """Counts evictions of a step that is not recorded yet, and prompt tokens that voted."""
    lost = 0
    for settle in plan.settles:
        req = settle.req
        if req.slab is not None and req.kv is not None:
            lost += req.slab.evicted(req.info.prompt_tok, req.info.prompt_tok)
    for req in plan.decode:
        if req.slab is not None and (got := produced.get(req.info.id)):
            after = req.computed_tok + got.count + got.replayed
            lost += req.slab.evicted(req.info.prompt_tok, after)
            lost -= req.slab.evicted(req.info.prompt_tok, req.computed_tok)
    counts.evictions += heads * lost
    for chunk in plan.chunks:
        if (slab := chunk.req.slab) is not None:
            start = max(chunk.start, slab.first_vote(chunk.req.info.prompt_tok))
            counts.scored_tok += max(0, chunk.end - start)
