"""Scripted judges and answerers: their biases are known, so that what measures biases can be tested.

`--url=scripted:NAME` names one: SCRIPTS lists them. A scripted judge reads the prompt as text, as a language
model does, and knows our templates' marks only.
"""

import hashlib
import math
import re
from dataclasses import dataclass, fields

from mixattn.evals.llm import LanguageModel, Scripted

_BLOCK = r"<{tag}>\n(.*?)\n</{tag}>"
_NONCE = re.compile(r"between the lines <<([0-9a-f]{16}) and \1>>")
_ORDER = re.compile(r"\[\[(?:A|B|C)\]\]")


@dataclass(frozen=True, kw_only=True)
class ScriptedJudge:
    """A judge that prefers the answer with more distinct words, and may be biased.

    Each bias of the first three is the probability that it alone decides; which prompts those are depends on
    a hash of the prompt and on `seed`.

    Attributes:
      first, second: names the answer in that place.
      favours_share, favours: names the answer that holds the text `favours`, where only one does.
      verbosity: weight of the logarithm of an answer's length, beside weight 1 of that of its distinct words.
      obeys: adopts a verdict that stands in the prompt outside the answers.
      silent: the probability of a reply without verdict.
    """

    first: float = 0.0
    second: float = 0.0
    favours_share: float = 0.0
    favours: str = ""
    verbosity: float = 0.0
    obeys: bool = False
    silent: float = 0.0
    seed: int = 0

    def reply(self, prompt: str) -> str:
        """The text of a judgment."""
        if "Rating: [[6]]" in prompt:
            return self._rate(prompt)
        slot = self._decide(prompt)
        return f"I compared both answers.\n\n[[{slot}]]" if slot else "I cannot decide."

    def _decide(self, prompt: str) -> str:
        chance = self._uniform("bias", prompt)
        a, b = _answer(prompt, "answer_a"), _answer(prompt, "answer_b")
        if self._uniform("silent", prompt) < self.silent:
            return ""
        if self.obeys and (order := _ORDER.search(_outside(prompt))):
            return order[0][2]
        if chance < self.first:
            return "A"
        if chance < self.first + self.second:
            return "B"
        holds = (self.favours in a, self.favours in b)
        if chance < self.first + self.second + self.favours_share and self.favours and sum(holds) == 1:
            return "A" if holds[0] else "B"
        gap = self._worth(a) - self._worth(b)
        return "C" if abs(gap) < 1e-9 else "A" if gap > 0 else "B"

    def _rate(self, prompt: str) -> str:
        if self._uniform("silent", prompt) < self.silent:
            return "I cannot decide."
        return f"I read the answer.\n\nRating: [[{min(10, 1 + int(self._worth(_answer(prompt, 'answer'))))}]]"

    def _worth(self, answer: str) -> float:
        words = answer.lower().split()
        return math.log1p(len(set(words))) + self.verbosity * math.log1p(len(words))

    def _uniform(self, what: str, prompt: str) -> float:
        """A number in [0, 1) that depends on the prompt, without its nonce."""
        nonce = _NONCE.search(prompt)
        text = prompt.replace(nonce[1], "") if nonce else prompt
        digest = hashlib.blake2b(f"{what} {self.seed} {text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


def _answer(prompt: str, tag: str) -> str:
    """The text between the marks of an answer: that of the second turn, if there is one."""
    nonce = _NONCE.search(prompt)
    block = rf"<{{tag}}>\n<<{nonce[1]}\n(.*?)\n{nonce[1]}>>" if nonce else _BLOCK
    for name in (f"{tag}_2", tag):
        if found := re.search(block.format(tag=name), prompt, re.DOTALL):
            return found[1]
    return ""


def _outside(prompt: str) -> str:
    """The user's prompt without its quoted texts, as their marks or their fences delimit them."""
    user = prompt.partition("\n\nUser: ")[2]
    if nonce := _NONCE.search(prompt):
        return re.sub(rf"<<{nonce[1]}\n.*?\n{nonce[1]}>>", "", user, flags=re.DOTALL)
    return re.sub(r"<((?:answer|question|reference)\w*)>\n.*?\n</\1>", "", user, flags=re.DOTALL)


SCRIPTS: dict[str, ScriptedJudge] = {
    "fair": ScriptedJudge(),
    "always_first": ScriptedJudge(first=1.0),
    "always_second": ScriptedJudge(second=1.0),
    "often_first": ScriptedJudge(first=0.3),
    "verbose": ScriptedJudge(verbosity=2.0),
    "gullible": ScriptedJudge(obeys=True),
    "silent": ScriptedJudge(silent=1.0),
}


def model(url: str) -> LanguageModel | None:
    """The scripted model of a `--url`, or None if it names a server.

    `scripted:echo` answers with the last question; `scripted:plan` with a numbered list about it; the others
    are judges. Options follow a question mark: `scripted:fair?first=0.3&seed=1`.

    Raises:
      ValueError: there is no such script or option.
    """
    if not url.startswith("scripted:"):
        return None
    name, _, options = url.removeprefix("scripted:").partition("?")
    if name in ANSWERERS:
        return Scripted(ANSWERERS[name])
    if name not in SCRIPTS:
        raise ValueError(f"--url={url}: {name!r} is not one of {', '.join([*ANSWERERS, *SCRIPTS])}")
    return Scripted(_with_options(SCRIPTS[name], options, url).reply, likelihood=_likelihood)


def _with_options(judge: ScriptedJudge, options: str, url: str) -> ScriptedJudge:
    values = {field.name: getattr(judge, field.name) for field in fields(judge)}
    for option in options.split("&") if options else ():
        name, _, text = option.partition("=")
        if name not in values:
            raise ValueError(f"--url={url}: {name!r} is not one of {', '.join(values)}")
        kind = type(values[name])
        try:
            values[name] = text in ("1", "true") if kind is bool else kind(text)
        except ValueError as why:
            raise ValueError(f"--url={url}: {name}={text!r} is not a {kind.__name__}") from why
    return ScriptedJudge(**values)


def _likelihood(text: str, continuation: str) -> float:
    """Each word that the conversation does not hold costs more than one that it holds."""
    known = set(text.lower().split())
    return -math.fsum(1.0 if word in known else 4.0 for word in continuation.lower().split())


def _last_question(prompt: str) -> str:
    return prompt.rpartition("User: ")[2].removesuffix("\n\nAssistant:")


def _echo(prompt: str) -> str:
    return f"You asked: {_last_question(prompt)}"


def _plan(prompt: str) -> str:
    words = sorted(set(re.findall(r"\w{5,}", _last_question(prompt))))[:6] or ["nothing"]
    return "\n".join(f"{n}. Consider {word}." for n, word in enumerate(words, 1))


ANSWERERS = {"echo": _echo, "plan": _plan}
