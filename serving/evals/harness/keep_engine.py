"""An engine that answers the harness' jobs, each under its own budget of keys.

A context is computed with every key and then cut; what follows is read by decode steps on the keys that are
left. The last `unseen_tok` tokens of a context are read after the cut as well: else the first token behind it
would be said by a model that has forgotten nothing, and answers of one token would not depend on the budget.
Jobs of one context that follow each other compute it once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mixattn.evals.longcontext.policies import FULL, ONCE, KeepPolicy
from mixattn.keep import Keep
from mixattn.model import Transformer
from serving.config import EngineConfig, KeepSettings, Limits
from serving.engine.engine import Engine
from serving.engine.program_cache import ProgramCache
from serving.evals.harness.jobs import Job, Score, ScoreJob, WriteJob
from serving.request import Output, Request, RequestId, RequestKeep, Sampling

PAGE_TOK = 16


@dataclass(frozen=True)
class HarnessSizes:
    """How much the engine holds.

    Attributes:
      longest_tok: of a request, context and what follows.
      slots: requests at once. chunk_tok: prompt tokens that one request computes in a step.
      unseen_tok: see the module; 0 = the whole context is computed before the cut.
    """

    longest_tok: int = 2048
    slots: int = 4
    chunk_tok: int = 256
    unseen_tok: int = 1

    def __post_init__(self) -> None:
        for name, least in (("longest_tok", 2), ("slots", 1), ("chunk_tok", 1), ("unseen_tok", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")


class KeepEngine:
    """Answers jobs.

    Args:
      policies: those that jobs may name. Their options other than scorer and budget must be the same.
      decode: token ids -> text.
      stop_ids: tokens that end an answer.

    Raises:
      ValueError: the model cannot evict so, or the policies differ in more than scorer and budget.
    """

    def __init__(
        self,
        model: Transformer,
        policies: Sequence[KeepPolicy],
        sizes: HarnessSizes,
        decode: Callable[[Sequence[int]], str],
        stop_ids: Sequence[int] = (),
        program_cache: ProgramCache | None = None,
    ):
        self.sizes, self._decode = sizes, decode
        self._keeps = {p: Keep(**p.fields) for p in policies if p.fields is not None}
        config = _config(sizes, stop_ids, self._slab_settings())
        self._slab_tok = config.keep.slab_tok
        self.engine = Engine(model, config, program_cache=program_cache)

    def run(
        self, jobs: Sequence[Job], on_answer: Callable[[int, Any], None] = lambda i, answer: None
    ) -> None:
        """Answers all jobs: calls `on_answer` with a job's place and its `Score` or text, as they come.

        Raises:
          ValueError: a job is too long, or the model's numbers were not finite.
        """
        engine, live = self.engine, dict[RequestId, int]()
        written = dict[RequestId, list[int]]()
        for place, job in enumerate(jobs):
            live[engine.submit(self._request(job))] = place
        while engine.live:
            for delta in engine.step():
                job = jobs[live[delta.id]]
                if delta.output is not None:
                    on_answer(live.pop(delta.id), self._answer(job, delta.output))
                elif isinstance(job, WriteJob) and job.until:
                    said = written.setdefault(delta.id, [])
                    said += delta.ids
                    text = self._text(job, said)
                    if job.cut(text) != text:
                        engine.cancel(delta.id)

    def budget_tok(self, job: Job) -> int:
        """Keys that a job's policy keeps per layer: at least the sinks and what its scorer protects."""
        keep = self._keeps[job.policy]
        prompt, _, new = self._parts(job)
        whole = len(prompt) + new if isinstance(job, ScoreJob) and job.rolling else len(prompt)
        least = max((keep.sinks or 0) + 1, keep.ranking.protects)
        return int(min(max(keep.total(whole, new), least), self._slab_tok))

    # ---- inside ----

    def _slab_settings(self) -> KeepSettings:
        """Slabs that hold the largest budget; none where every policy keeps everything."""
        if not self._keeps:
            return KeepSettings()
        options = {policy.options for policy in self._keeps}
        if len(options) > 1:
            raise ValueError(
                f"policies of one engine differ in scorer and budget only; these have {sorted(options)}"
            )
        longest = self.sizes.longest_tok
        largest = max(int(keep.total(longest, 0)) for keep in self._keeps.values())
        grows = any(keep.when == "prompt" for keep in self._keeps.values())
        scorers = list(dict.fromkeys(policy.scorer for policy in self._keeps))
        scorers.sort(key=lambda name: name in ONCE)  # the default one evicts in every step if any does
        given = dict(options.pop())
        recent = given.pop("recent", 0.5)
        given["recent_tok" if isinstance(recent, int) else "recent_share"] = recent
        when = "prompt" if scorers[0] in ONCE else "decode"
        return KeepSettings(
            slab_tok=longest if grows else min(max(largest, 16), longest),
            scorer=scorers[0],
            scorers=tuple(scorers[1:]),
            prefilling=self.sizes.slots,
            when=given.pop("when", when),
            **given,
        )

    def _parts(self, job: Job) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """What is computed before the cut, what is given after it, and tokens after it in all."""
        unseen = min(self.sizes.unseen_tok, len(job.context) - 1)
        prompt, tail = job.context[: len(job.context) - unseen], job.context[len(job.context) - unseen :]
        if isinstance(job, ScoreJob):
            given = tail + job.continuation
            return prompt, given, len(given)
        return prompt, tail, len(tail) + job.max_tokens

    def _request(self, job: Job) -> Request:
        if not self._slab_tok:
            return _whole_request(job)
        prompt, given, new = self._parts(job)
        if job.policy.scorer == FULL:
            keep = RequestKeep(everything=True)
        else:
            keep = RequestKeep(scorer=job.policy.scorer, budget=self.budget_tok(job))
        sampling = _sampling(job, new)
        return Request(client="harness", prompt_ids=prompt, forced_ids=given, keep=keep, sampling=sampling)

    def _answer(self, job: Job, output: Output) -> Score | str:
        if output.finish_reason not in ("length", "stop", "cancel"):
            raise ValueError(
                f"a request of {output.prompt_tok} tokens under {job.policy.name} ended as "
                f"{output.finish_reason!r}: the model's numbers may not be finite"
            )
        if isinstance(job, WriteJob):
            return job.cut(self._text(job, output.output_ids))
        told = output.logprobs if self._slab_tok else output.prompt_logprobs
        last = told[len(told) - len(job.continuation) :]
        return Score(sum(lp.logprob for lp in last), all(lp.top[0][0] == lp.id for lp in last))

    def _text(self, job: WriteJob, said: Sequence[int]) -> str:
        """The text of outputs, without what was given and the token that ended them."""
        given = len(self._parts(job)[1]) if self._slab_tok else 0
        ids = list(said[given:])
        if ids and ids[-1] in self.engine.config.eos_ids:
            ids.pop()
        before = list(job.context[-1:])  # some tokenizers drop a space at the beginning of a text
        return self._decode(before + ids)[len(self._decode(before)) :]


def _sampling(job: Job, new: int) -> Sampling:
    if isinstance(job, ScoreJob):
        return Sampling(max_tokens=new, logprobs=1, ignore_eos=True)
    return Sampling(
        max_tokens=new, temperature=job.temperature, top_p=job.top_p, top_k=job.top_k, seed=job.seed
    )


def _whole_request(job: Job) -> Request:
    """For an engine that evicts nothing: a text is scored as a prompt."""
    if isinstance(job, WriteJob):
        sampling = _sampling(job, job.max_tokens)
        return Request(client="harness", prompt_ids=job.context, sampling=sampling)
    sampling = Sampling(max_tokens=1, prompt_logprobs=1, ignore_eos=True)
    return Request(client="harness", prompt_ids=job.context + job.continuation, sampling=sampling)


def _config(sizes: HarnessSizes, stop_ids: Sequence[int], keep: KeepSettings) -> EngineConfig:
    chunk = min(sizes.chunk_tok, sizes.longest_tok)
    return EngineConfig(
        max_slots=sizes.slots,
        page_size=PAGE_TOK,
        max_request_tok=sizes.longest_tok + 1,  # a text that is scored as a prompt samples one token more
        limits=Limits(chunk_tok=chunk, step_tok=chunk, decode_steps=(8, 4, 1)),
        prefill_rows=(1,),
        chunk_sizes=(min(64, chunk),),  # a deep stack compiles as one program for each size
        eos_ids=tuple(stop_ids),
        logprobs=1,
        prompt_logprobs=not keep.slab_tok,
        layers_per_program=0 if keep.slab_tok else -1,
        keep=keep,
    )
