"""One output on its way through the cluster, and what is sent to workers on its behalf."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serving.fair.routers.load_index import WorkerId
from serving.fair.routers.prefix_map import Block
from serving.request import Delta, FinishReason, Logprob, Output, Request, RequestId, RequestInfo

type AttemptId = int

TOKEN_BYTES = array("I").itemsize


def token_bytes(ids: Sequence[int]) -> bytes:
    """Tokens as bytes of one size. Raises OverflowError for one that no vocabulary has."""
    return array("I", ids).tobytes()


class Send(NamedTuple):
    """A worker shall run this request, which has one output; its reports name the attempt. `prompt` is its
    prompt as bytes."""

    worker: WorkerId
    attempt: AttemptId
    request: Request
    prompt: bytes


class Stop(NamedTuple):
    """A worker shall run this no longer; its reports do not count any more."""

    worker: WorkerId
    attempt: AttemptId
    name: RequestId


@dataclass(eq=False, slots=True)
class LiveOutput:
    """What the client of an output has received, and who works on it.

    Attributes:
      request: as the client sent it; prompt: its tokens as bytes.
      index: which of its outputs; name: what that is scheduled under.
      seq: place in the order of arrival.
      tries: times it was dispatched.
      attempt, worker: of the last dispatch; None while it waits.
      resumed_tok: tokens it had by then.
      next_report: number of the next report of this attempt.
      chars: of the text, as this attempt has told it: the first report of a resumed output begins anew.
      admitted: whether this attempt has begun to run.
    """

    request: Request
    index: int
    name: RequestId
    seq: int
    arrival_s: float
    prompt: bytes
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    tries: int = 0
    attempt: AttemptId | None = None
    worker: WorkerId | None = None
    resumed_tok: int = 0
    next_report: int = 0
    chars: int = 0
    admitted: bool = False
    hit_tok: int = 0
    admit_s: float = -1.0
    first_token_s: float = -1.0

    @property
    def produced_tok(self) -> int:
        """Output tokens that this attempt has delivered."""
        return len(self.ids) - self.resumed_tok

    @property
    def deadline_s(self) -> float | None:
        limit_s = self.request.deadline_s
        return None if limit_s is None else self.arrival_s + limit_s

    def info(self) -> RequestInfo:
        """Its sizes, with what it has received as part of the prompt."""
        request, got = self.request, len(self.ids)
        return RequestInfo(
            self.name,
            request.client,
            self.seq,
            len(request.prompt_ids) + got,
            request.sampling.max_tokens - got,
            program=request.program,
        )

    def blocks(self, block_tok: int) -> Sequence[Block]:
        """Its prompt and what it has received, for a router; nothing where the worker will not look it up."""
        if self.request.sampling.prompt_logprobs is not None:
            return ()
        data = self.prompt + token_bytes(self.ids) if self.ids else self.prompt
        step = block_tok * TOKEN_BYTES
        keys = [data[at : at + step] for at in range(0, len(data), step)]
        blocks: list[Block] = [(key, block_tok) for key in keys]
        blocks[-1] = keys[-1], len(keys[-1]) // TOKEN_BYTES
        blocks[0] = (self.request.cache_salt, keys[0]), blocks[0][1]
        return blocks

    def sent(self, worker: WorkerId, attempt: AttemptId, now_s: float) -> Send:
        """Begins an attempt."""
        self.tries += 1
        self.worker, self.attempt, self.resumed_tok = worker, attempt, len(self.ids)
        self.next_report = self.chars = 0
        self.admitted = False
        sampling, deadline_s = self.request.sampling, self.deadline_s
        if sampling.n > 1 or sampling.seed is None:  # alone, and under any name, it draws the same tokens
            sampling = _changed(sampling, n=1, seed=self.request.seed_of(self.index))
        request = _changed(
            self.request,
            id=self.name,
            sampling=sampling,
            resume_ids=tuple(self.ids),
            deadline_s=None if deadline_s is None else max(0.0, deadline_s - now_s),
        )
        return Send(worker, attempt, request, self.prompt)

    def withdraw(self) -> None:
        self.worker = self.attempt = None
        self.admitted = False

    def take(self, delta: Delta, now_s: float) -> Delta:
        """What is new for the client in a worker's delta."""
        if delta.ids and not self.ids:
            self.first_token_s = now_s
        self.ids += delta.ids
        self.logprobs += delta.logprobs
        told = len(self.text) - self.chars  # by earlier attempts, and now again
        text = delta.text[max(0, told) :]
        self.chars += len(delta.text)
        self.text += text
        client, index = self.request.client, self.index
        return Delta(
            self.request.id, client, list(delta.ids), index=index, text=text, logprobs=delta.logprobs
        )

    def output(self, reason: FinishReason, now_s: float, of_worker: Output | None) -> Output:
        """The whole result; `of_worker`: as the worker that ended it sees it."""
        return Output(
            id=self.request.id,
            client=self.request.client,
            output_ids=self.ids,
            finish_reason=reason,
            prompt_tok=len(self.request.prompt_ids),
            hit_tok=self.hit_tok,
            arrival_s=self.arrival_s,
            admit_s=self.admit_s,
            first_token_s=self.first_token_s,
            finish_s=now_s,
            index=self.index,
            text=self.text,
            stop=None if of_worker is None else of_worker.stop,
            logprobs=self.logprobs,
            prompt_logprobs=() if of_worker is None else of_worker.prompt_logprobs,
        )


def _changed[T](frozen: T, **fields: Any) -> T:
    """The same with other values, which are known to be allowed: checking all anew takes longer than all else
    that a dispatch does."""
    made: T = object.__new__(type(frozen))
    vars(made).update(vars(frozen), **fields)
    return made
