"""The suite of long contexts through the engine: every question is a request, its budget the request's own.

    python -m serving.evals longcontext --checkpoint=models/smollm2 --tasks=needle,tracking --budgets=0.2,0.5
    python -m serving.evals longcontext --checkpoint=runs/demo/model --fast --slots=2

Flags, table, pictures and resuming are those of `python -m mixattn.evals longcontext`, and so are the
answers, since the engine cuts slabs as `mixattn.generate` cuts its caches: a folder may be continued by
either command. Prompts are computed in chunks and requests are batched continuously, --slots at a time. One
engine serves all scorers and budgets whose other settings are equal, and keeps the pages and scores of
prompts: a question is computed once and found again under every further policy. The tasks text and stream
score given tokens, which no engine does behind a cut; they go through the caches of `mixattn.generate` here
too. An engine cuts whole prompts: there is no --mode=agnostic and no blockwise prefill.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from mixattn.evals import command_line
from mixattn.evals.longcontext import command
from mixattn.evals.longcontext.checkpoint import CheckpointModel, keep_of
from mixattn.evals.longcontext.example import Example
from mixattn.evals.longcontext.policies import KeepPolicy
from mixattn.evals.longcontext.suite import NATS_TASKS, Mode, SuiteGrid
from mixattn.keep import SCORERS, Keep
from mixattn.spec import kv_bytes
from serving.config import STOP_IDS, EngineConfig, KeepSettings, Limits
from serving.model_engine import PAGE_TOK
from serving.request import Request, RequestKeep, Sampling

if TYPE_CHECKING:
    from serving.engine.engine import Engine

FLAGS = flags.FLAGS
CLIENT = "longcontext"
CACHED_BYTES = 2**31  # of K/V of prompts that other policies are asked again
NEW_TOK = 64  # the longest answer that a task allows
# Fields of `Keep` that an engine's settings name too; requests differ in scorer and budget only.
_SHARED = tuple(
    field.name for field in dataclasses.fields(KeepSettings) if field.name in Keep.__dataclass_fields__
)

type SlabKind = tuple[tuple[str, Any], ...]  # settings that all requests of an engine share


def start(argv: list[str]) -> None:
    """Runs the command line."""
    command.define_flags()
    flags.DEFINE_integer("slots", 8, "Requests that run at once.", 1)
    command_line.run(__name__, _main, argv, shared=(command.__name__,))


def _main() -> None:
    logging.set_verbosity(logging.ERROR)
    if FLAGS.mode == "agnostic":
        raise ValueError("--mode=agnostic cuts before the question is read; an engine cuts whole prompts")
    command.main(
        lambda path, scored, grid: EngineBackedModel(path, scored, grid, slots=FLAGS.slots),
        "python -m serving.evals longcontext",
    )


class EngineBackedModel(CheckpointModel):
    """A checkpoint whose answers come from engines with slabs.

    Args:
      path, scored: see `CheckpointModel`.
      grid: all that will be asked; it decides the slabs' size.
      slots: requests that run at once.

    Raises:
      ValueError: no checkpoint, or a policy that an engine does not know.
    """

    def __init__(self, path: Path, scored: int, grid: SuiteGrid, *, slots: int):
        for policy in grid.policies:
            slab_kind(policy)
        super().__init__(path, scored)
        self._grid, self._slots = grid, slots
        self._engines: dict[SlabKind, Engine] = {}

    def answers(self, examples: Sequence[Example], policy: KeepPolicy, mode: Mode) -> list[str]:
        if mode == "agnostic":
            raise ValueError("an engine cuts whole prompts; ask agnostic questions without it")
        new_tok = max(example.new_tokens for example in examples)
        keep = RequestKeep(everything=True)
        if policy.fields is not None:
            keep = RequestKeep(scorer=policy.fields["scorer"], budget=policy.budget)
        requests = [
            Request(
                client=CLIENT,
                prompt_ids=self.ids(example.context) + self.ids(example.question + example.lead, first=False),
                sampling=Sampling(max_tokens=new_tok),
                keep=keep,
            )
            for example in examples
        ]
        outputs = self._engine(policy).run(requests)
        return [self.tokenizer.decode(output.output_ids) for output in outputs]

    def _engine(self, policy: KeepPolicy) -> "Engine":
        """The engine of a policy, made when it is first needed; the full cache goes through any of them."""
        kinds = [slab_kind(one) for one in self._grid.policies if one.fields is not None]
        kind = slab_kind(policy) if policy.fields is not None else next(iter(kinds), ())
        if kind not in self._engines:
            alike = [one for one in self._grid.policies if one.fields is not None and slab_kind(one) == kind]
            self._engines[kind] = self._made(kind, alike)
        return self._engines[kind]

    def _made(self, kind: SlabKind, policies: Sequence[KeepPolicy]) -> "Engine":
        from serving.engine.engine import Engine
        from serving.engine.program_cache import ProgramCache, default_folder

        longest = max(self._grid.lengths) if set(self._grid.tasks) - set(NATS_TASKS) else NEW_TOK
        request_tok = min(longest + NEW_TOK, self.config.max_positions)
        questions = max(len(self._grid.places(task)) for task in self._grid.tasks)
        fitting = CACHED_BYTES // kv_bytes(self.config, request_tok, self.config.dtype)
        cached = max(1, min(questions, fitting))
        config = EngineConfig(
            max_slots=self._slots,
            max_request_tok=request_tok,
            page_size=PAGE_TOK,
            num_pages=1 + (self._slots + cached) * -(-request_tok // PAGE_TOK),
            limits=Limits(chunk_tok=128, step_tok=256, decode_steps=(4, 1)),
            chunk_sizes=(16,),
            prefill_rows=(1,),
            eos_ids=self.stop_ids[:STOP_IDS],
            keep=dataclasses.replace(slab_settings(dict(kind), policies, longest), snapshots=cached),
        )
        return Engine(
            self.model, config, decode=self.tokenizer.decode, program_cache=ProgramCache(default_folder())
        )


def slab_kind(policy: KeepPolicy) -> SlabKind:
    """The settings of a policy that its engine must have.

    Raises:
      ValueError: an engine does not know the policy.
    """
    keep = keep_of(policy)
    if keep is None:
        return ()
    if keep.prefill != "exact":
        raise ValueError(f"{policy.name} cuts prompts by blocks, and an engine cuts whole ones; leave it out")
    shared = {name: getattr(keep, name) for name in _SHARED if name not in ("scorer", "budget", "recent")}
    shared |= {"recent_tok" if isinstance(keep.recent, int) else "recent_share": keep.recent}
    if not SCORERS[keep.scorer].decodes:  # such a scorer cuts once in any engine
        shared["when"] = "decode"
    return tuple(shared.items())


def slab_settings(
    kind: Mapping[str, Any], policies: Sequence[KeepPolicy], prompt_tok: int, new_tok: int = NEW_TOK
) -> KeepSettings:
    """Slabs for all of these policies; off if there are none."""
    keeps = [keep for policy in policies if (keep := keep_of(policy)) is not None]
    if not keeps:
        return KeepSettings()
    names = list(dict.fromkeys(keep.scorer for keep in keeps))
    names.sort(key=lambda name: not SCORERS[name].decodes)  # the default must be able to evict in every step
    when = {} if SCORERS[names[0]].decodes else {"when": "prompt"}
    slab_tok = max(keep.most(prompt_tok, new_tok, 0, 1) for keep in keeps)
    return KeepSettings(slab_tok=slab_tok, scorer=names[0], scorers=tuple(names[1:]), **{**kind, **when})
