"""The harness' three methods over our engine. Needs `lm_eval`, which has an environment of its own.

lm = EngineLM.create_from_arg_string("pretrained=models/smollm2,scorer=h2o,budget=0.2,max_length=2048")
lm_eval.simple_evaluate(lm, tasks=["ruler_vt"], ...)
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from absl import logging
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from mixattn import chat_template, hf
from mixattn.evals.longcontext.policies import FULL, KeepPolicy
from serving.config import STOP_IDS
from serving.engine.program_cache import ProgramCache, default_folder
from serving.evals.harness.answers import AnswerBook
from serving.evals.harness.jobs import Job, ScoreJob, WriteJob, windows
from serving.evals.harness.keep_engine import HarnessSizes, KeepEngine

MAX_NEW_TOK = 256  # of an answer whose task names no length, as other models of the harness have it
SAMPLING = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "seed")


@dataclasses.dataclass(frozen=True)
class HarnessModel:
    """A checkpoint for the harness, shared by the policies under which it answers.

    Attributes:
      path: of the checkpoint. longest_tok: of a request.
      encode: text -> ids with what the tokenizer puts in front, or without.
      end_id: ends a text. begin_id: stands before one.
    """

    path: Path
    longest_tok: int
    book: AnswerBook
    encode: Callable[[str, bool], list[int]]
    end_id: int
    begin_id: int

    @classmethod
    def load(
        cls,
        path: Path,
        policies: Sequence[KeepPolicy],
        sizes: HarnessSizes,
        *,
        answers: Path | None = None,
        on_answers: Callable[[int, int], None] = lambda known, wanted: None,
    ) -> Self:
        """Loads a checkpoint and makes its engine.

        Args:
          answers: the book's file. on_answers: see `AnswerBook`.

        Raises:
          ValueError: no checkpoint, one that cannot evict so, or a context shorter than `sizes` say.
        """
        model, config = hf.load(path)
        if sizes.longest_tok > config.max_positions:
            raise ValueError(
                f"requests of {sizes.longest_tok} tokens do not fit the context of {path}, which is "
                f"{config.max_positions}"
            )
        tokenizer, stops = hf.load_tokenizer(path), tuple(hf.stop_ids(path))[:STOP_IDS]
        if not stops:
            raise ValueError(f"{path} names no token that ends a text; an empty context needs one")
        begin = hf.tokenizer_settings(path).get("bos_token")
        begin = begin.get("content") if isinstance(begin, dict) else begin
        begin_id = tokenizer.token_to_id(begin) if isinstance(begin, str) else None
        engine = KeepEngine(
            model, policies, sizes, tokenizer.decode, stops, program_cache=ProgramCache(default_folder())
        )

        def encode(text: str, special: bool) -> list[int]:
            ids = list(tokenizer.encode(text, add_special_tokens=special).ids)
            return ids[1:] if ids[:2] == [begin_id, begin_id] else ids  # a template wrote one too

        book = AnswerBook(engine, policies, answers, on_answers)
        return cls(
            path, sizes.longest_tok, book, encode, stops[0], stops[0] if begin_id is None else begin_id
        )


@register_model("mixattn")
class EngineLM(TemplateLM):
    """A checkpoint under one budget of keys.

    Args:
      model: as loaded.
      policy: one of those it was loaded with.
    """

    def __init__(self, model: HarnessModel, policy: KeepPolicy):
        super().__init__()
        self.model, self.policy = model, policy

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> Self:
        """From `--model_args`: pretrained, scorer ("full"), budget, recent, sinks, max_length, unseen_tok.

        Raises:
          ValueError: an argument that is unknown, or a value that `Keep` refuses.
        """
        given = dict(arg_dict)
        path, scorer = Path(given.pop("pretrained", "models/smollm2")), given.pop("scorer", FULL)
        budget = given.pop("budget", 0.2)
        options = {name: given.pop(name) for name in ("recent", "sinks") if name in given}
        policy = KeepPolicy(scorer, budget, tuple(({"sinks": 4, "recent": 0.5} | options).items()))
        sizes = HarnessSizes(given.pop("max_length", 2048), unseen_tok=given.pop("unseen_tok", 1))
        given.pop("tokenizer", None)  # of RULER's generators
        if given:
            raise ValueError(
                f"model_args have {min(given)!r}; known are pretrained, scorer, budget, recent, sinks, "
                "max_length, unseen_tok and tokenizer"
            )
        return cls(HarnessModel.load(path, [policy], sizes), policy)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Self:
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # ---- the three methods ----

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._answered("generate_until", requests, [self._write(*r.args) for r in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        most = self.model.longest_tok - 1
        pieces, owners = [], []
        for place, request in enumerate(requests):
            ids = self.model.encode(request.args[0], False)
            for context, continuation in windows(ids, self.prefix_token_id, most):
                pieces.append(ScoreJob(self.policy, context, continuation, rolling=True))
                owners.append(place)
        sums = [0.0] * len(requests)
        for place, score in zip(owners, self.model.book.answers(pieces), strict=True):
            sums[place] += score.nats
        return sums

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """`loglikelihood`, whose texts the harness turns into ids of context and continuation."""
        jobs: list[Job] = []
        for _, context, continuation in requests:
            room = self.model.longest_tok - len(continuation)
            jobs.append(ScoreJob(self.policy, self._last(context, room), tuple(continuation)))
        return [(score.nats, score.greedy) for score in self.model.book.answers(jobs)]

    # ---- what the harness asks beside them ----

    @property
    def eot_token_id(self) -> int:
        return self.model.end_id

    @property
    def prefix_token_id(self) -> int:
        return self.model.begin_id

    @property
    def max_length(self) -> int:
        return self.model.longest_tok

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.model.encode(string, add_special_tokens is not False)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        path = self.model.path
        templates, settings = hf.chat_templates(path), hf.tokenizer_settings(path)
        variables: dict[str, Any] = {"add_generation_prompt": add_generation_prompt}
        return chat_template.render(templates, settings, chat_history, where=path, **variables)

    # ---- inside ----

    def _answered(self, method: str, requests: Sequence[Instance], jobs: Sequence[Job]) -> list[Any]:
        answers = self.model.book.answers(jobs)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(method, request.args, answer)
        return answers

    def _write(self, context: str, options: dict[str, Any]) -> WriteJob:
        if unknown := sorted(options.keys() - set(SAMPLING)):
            raise ValueError(f"generation has {unknown[0]!r}; known are {', '.join(SAMPLING)}")
        new = int(options.get("max_gen_toks", MAX_NEW_TOK))
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        hot = float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0
        return WriteJob(
            self.policy,
            self._last(self.tok_encode(context) or [self.prefix_token_id], self.model.longest_tok - new),
            new,
            tuple(filter(None, until)),
            hot,
            float(options.get("top_p", 1.0)),
            int(options.get("top_k", -1)),
            int(options.get("seed", 0)),
        )

    def _last(self, ids: Sequence[int], room: int) -> tuple[int, ...]:
        """The last tokens of a context that is longer than there is room."""
        if room < 1:
            raise ValueError(
                f"a request leaves no room for its context; it may have {self.model.longest_tok} tokens"
            )
        if len(ids) > room:
            logging.warning("a context of %d tokens is cut to its last %d", len(ids), room)
        return tuple(ids[-room:])
