"""One judgment: what a language model is asked, and what its reply says, in three ways.

parse        the model writes a verdict, which is read from its reply (Zheng et al. 2023, section 3.1)
likelihood   the log-probabilities of the verdict marks, after the same prompt
answer       the mean log-probability of each answer itself, after the question; it has no order to be biased
by
"""

import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from mixattn.evals.judge import parsing
from mixattn.evals.judge.bench import Turns
from mixattn.evals.judge.matches import JudgeMatch, new_nonce
from mixattn.evals.judge.parsing import Slot
from mixattn.evals.llm import Completion, LanguageModel, Likelihood, Messages, Usage

type Verdict = Literal["parse", "likelihood", "answer"]
VERDICTS: tuple[Verdict, ...] = ("parse", "likelihood", "answer")
RATINGS = range(1, 11)
WINNERS: tuple[dict[Slot, str], ...] = (
    {"A": "model_1", "B": "model_2", "tie": "tie", "error": "error"},
    {"A": "model_2", "B": "model_1", "tie": "tie", "error": "error"},
)

# A call with retries and accounting around it; see `play.Caller`.
type Through = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How a judge is asked and read.

    Attributes:
      verdict: see the module.
      rule: which of several verdicts in a reply counts.
      strict_rating: a rating outside 1 to 10 counts as none.
      nonce: fence quoted texts with a random code.
      max_tokens: of a reply.
      tie_margin: `answer` calls a tie where the mean log-probabilities differ by no more.
    """

    verdict: Verdict = "parse"
    rule: parsing.Rule = "first"
    strict_rating: bool = False
    nonce: bool = False
    max_tokens: int = 2048
    tie_margin: float = 0.0


@dataclass
class AskedOnce:
    """One call's outcome: the slot, label or rating it gave, and what the judgment file keeps of it."""

    prompt: str
    judgment: str
    slot: Slot = "error"
    score: float = parsing.NO_RATING
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelJudge:
    """A language model that judges; `label` names it in judgment files."""

    model: LanguageModel
    label: str
    options: JudgeOptions
    _means: dict[tuple[str, str], float] = field(default_factory=dict)  # of answers scored before

    async def judge(self, match: JudgeMatch, through: Through) -> dict[str, Any]:
        """The line for the judgment file.

        Raises:
          CallFailed: a call failed for good; nothing of the match is kept then.
        """
        nonce = new_nonce() if self.options.nonce else ""
        asked = [await self._ask(match, order, nonce, through) for order in range(len(match.shown))]
        line = _single(match, asked[0]) if len(asked) == 1 else _pair(match, asked[0], asked[1])
        line["judge"] = [self.label, match.template.name]
        line |= {"nonce": nonce} if nonce else {}
        return line | {"turn": match.turn, "tstamp": time.time()}

    async def _ask(self, match: JudgeMatch, order: int, nonce: str, through: Through) -> AskedOnce:
        prompt = match.prompt(order, nonce)
        messages = [
            {"role": "system", "content": match.system(nonce)},
            {"role": "user", "content": prompt},
        ]
        if self.options.verdict == "parse":
            return await self._ask_parse(match, messages, through)
        if self.options.verdict == "likelihood":
            return await self._ask_likelihood(match, messages, through)
        return await self._ask_answer(match, order, through)

    async def _ask_parse(self, match: JudgeMatch, messages: Messages, through: Through) -> AskedOnce:
        async def call() -> Completion:
            return await self.model.complete_messages(messages, max_tokens=self.options.max_tokens)

        reply = (await through(call)).text
        asked, rule = AskedOnce(messages[-1]["content"], reply), self.options.rule
        form = match.template.output_format
        if form == "[[rating]]":
            span = (RATINGS[0], RATINGS[-1]) if self.options.strict_rating else None
            asked.score = parsing.rating(reply, rule, span)
        elif form == "[[A>>B]]":
            label = parsing.five_labels(reply, "last")
            asked.slot, asked.extra = parsing.slot_of_label(label), {"label": label}
        else:
            read = parsing.pairwise if form == "[[A]]" else parsing.two_scores
            asked.slot = read(reply, rule)
        return asked

    async def _ask_likelihood(self, match: JudgeMatch, messages: Messages, through: Through) -> AskedOnce:
        form = match.template.output_format
        marks = {"[[rating]]": [f"[[{n}]]" for n in RATINGS], "[[A>>B]]": list(parsing.FIVE)}
        choices = marks.get(form, list(parsing.LABELS))

        async def call() -> list[Likelihood]:
            return await self.model.likelihoods(messages, choices)

        found = {mark: each.log_probability for mark, each in zip(choices, await through(call), strict=True)}
        asked = AskedOnce(messages[-1]["content"], json.dumps(found), extra={"logprobs": found})
        best = max(found, key=lambda mark: found[mark])
        if form == "[[rating]]":
            asked.score = _expected_rating(list(found.values()))
        elif form == "[[A>>B]]":
            asked.slot, asked.extra["label"] = parsing.slot_of_label(best), best
        else:
            asked.slot = parsing.LABELS[best]
        return asked

    async def _ask_answer(self, match: JudgeMatch, order: int, through: Through) -> AskedOnce:
        means = []
        for turns in match.shown[order]:
            messages, answer = conversation(match, turns), turns[match.turn - 1]
            means.append(await self._mean(messages, answer, through))
        asked = AskedOnce(conversation(match, match.shown[order][0])[-1]["content"], json.dumps(means))
        asked.extra = {"mean_logprobs": means}
        asked.slot = _higher(means[0], means[1], self.options.tie_margin)
        return asked

    async def _mean(self, messages: Messages, answer: str, through: Through) -> float:
        """The mean log-probability of an answer; asked for once, whatever pairs and orders it is in."""
        key = (json.dumps(messages), answer)

        async def call() -> Likelihood:
            return (await self.model.likelihoods(messages, [answer]))[0]

        if key not in self._means:
            self._means[key] = (await through(call)).per_token if answer else -math.inf
        return self._means[key]


def conversation(match: JudgeMatch, turns: Turns) -> list[dict[str, str]]:
    """The questions and answers up to the question of the match's turn."""
    messages = []
    for turn, question in enumerate(match.question.turns[: match.turn]):
        messages.append({"role": "user", "content": question})
        if turn < match.turn - 1:
            messages.append({"role": "assistant", "content": turns[turn]})
    return messages


def _higher(a: float, b: float, margin: float) -> Slot:
    if a == b or abs(a - b) <= margin:  # an empty answer has -inf, and -inf - -inf is no number
        return "tie"
    return "A" if a > b else "B"


def _expected_rating(logs: list[float]) -> float:
    """The mean of 1 to 10 under the renormalised probabilities of their marks."""
    top = max(logs)
    weights = [math.exp(log - top) for log in logs]
    return sum(rating * weight for rating, weight in zip(RATINGS, weights)) / sum(weights)


def _single(match: JudgeMatch, asked: AskedOnce) -> dict[str, Any]:
    return {
        "question_id": match.question.id,
        "model": match.models[0],
        "judge": [],
        "user_prompt": asked.prompt,
        "judgment": asked.judgment,
        "score": asked.score,
        **asked.extra,
    }


def _pair(match: JudgeMatch, first: AskedOnce, second: AskedOnce) -> dict[str, Any]:
    """Winners are mapped back to models; `g2` saw model_2 first."""
    line: dict[str, Any] = {
        "question_id": match.question.id,
        "model_1": match.models[0],
        "model_2": match.models[1],
        "g1_winner": WINNERS[0][first.slot],
        "g2_winner": WINNERS[1][second.slot],
        "judge": [],
    }
    for game, asked in (("g1", first), ("g2", second)):
        line |= {f"{game}_user_prompt": asked.prompt, f"{game}_judgment": asked.judgment}
        line |= {f"{game}_{name}": value for name, value in asked.extra.items()}
    return line


def failed(line: dict[str, Any]) -> bool:
    """Whether a line of a judgment file holds a reply without verdict."""
    if "score" in line:
        return line["score"] == parsing.NO_RATING
    return "error" in (line["g1_winner"], line["g2_winner"])


def used(result: Any) -> Usage:
    """The tokens of a call's result, where it tells them."""
    return result.usage if isinstance(result, Completion) else Usage()
