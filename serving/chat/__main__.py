"""Chats with a model on the terminal.

    python -m serving.chat --model=models/smollm2
    python -m serving.chat --model=FILE.gguf --temperature=0.7 --system="You answer in rhymes."
    echo "What is the capital of France?" | python -m serving.chat --model=models/smollm2

A line is a message. Ctrl-C stops an answer, and leaves at the prompt; /quit leaves, /reset forgets the
conversation, /help says so. Behind each answer stand its tokens, the seconds to its first one, and tokens/s.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from mixattn.tools import cli
from serving import model_engine
from serving.config import KV_DTYPE_HELP, KV_DTYPES, QUANTIZE, EngineConfig, Limits
from serving.offline import chat_lines
from serving.request import Sampling

if TYPE_CHECKING:
    from serving.chat.session import ChatSession

_MODEL = flags.DEFINE_string("model", None, "Hugging Face directory or GGUF file.")
_SYSTEM = flags.DEFINE_string("system", None, "System message; the model's own by default.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "0 = greedy; the model's generation_config.json by default."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the answers.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 512, "Longest answer, in tokens.", lower_bound=1)
_MAX_MODEL_LEN = flags.DEFINE_integer(
    "max_model_len", 2048, "Longest conversation, in tokens.", lower_bound=16
)
_DTYPE = flags.DEFINE_string(
    "dtype", None, "Dtype of the weights in memory, e.g. bfloat16; the model's by default."
)
_QUANTIZE = flags.DEFINE_enum(
    "quantize", "", QUANTIZE, "int8: weights in 8 bits, rounded as they are read; as they are by default."
)
_KV_DTYPE = flags.DEFINE_enum("kv_dtype", "", KV_DTYPES, KV_DTYPE_HELP)
HELP = "/quit leaves, /reset forgets the conversation, Ctrl-C stops an answer"


def main() -> None:
    if not _MODEL.value:
        raise ValueError(
            "--model is missing; name a Hugging Face directory or a GGUF file, e.g. models/smollm2"
        )
    if not Path(_MODEL.value).is_file() and not (Path(_MODEL.value) / "config.json").exists():
        raise ValueError(f"{_MODEL.value} holds no model; `make model` fetches one into models/smollm2")
    if _MAX_TOKENS.value >= _MAX_MODEL_LEN.value:
        raise ValueError(
            f"--max_tokens={_MAX_TOKENS.value} leaves no room in --max_model_len={_MAX_MODEL_LEN.value}"
        )
    session = start()
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP, file=sys.stderr)
    for line in _lines(interactive):
        if line == "/quit":
            return
        if line == "/help":
            print(HELP)
        elif line == "/reset":
            session.history = session.history[:1] if _SYSTEM.value else []
        elif line.startswith("/"):
            print(f"{line.split()[0]} is not a command: {HELP}", file=sys.stderr)
        elif line:
            _answer(session, line, echo=not interactive)


def start() -> "ChatSession":
    """Loads the model and compiles the engine's programs, which takes seconds, and says so."""
    from mixattn import hf
    from serving.chat.session import ChatSession
    from serving.engine.engine import Engine
    from serving.engine.program_cache import ProgramCache, default_folder

    path = _MODEL.value
    tokenizer, eos = hf.load_tokenizer(path), model_engine.eos_ids(path)
    sampling = model_engine.sampling_defaults(hf.generation_settings(path))
    sampling |= {"max_tokens": _MAX_TOKENS.value, "seed": _SEED.value}
    if _TEMPERATURE.value is not None:
        sampling["temperature"] = _TEMPERATURE.value
    render = chat_lines.renderer(path, tokenizer)
    history = [{"role": "system", "content": _SYSTEM.value}] if _SYSTEM.value else []
    render(
        [*history, {"role": "user", "content": "Hello"}]
    )  # no template: refused before the model is loaded
    _status("loading")
    model, _ = hf.load(path, dtype=_DTYPE.value, quantize=_QUANTIZE.value)
    chosen = Sampling(**sampling)
    config = EngineConfig(
        max_slots=1,
        max_request_tok=_MAX_MODEL_LEN.value,
        kv_dtype=_KV_DTYPE.value,
        limits=Limits(chunk_tok=min(256, _MAX_MODEL_LEN.value), decode_steps=(4, 1)),
        chunk_sizes=(16,),
        prefill_rows=(1,),
        eos_ids=eos,
        penalties=chosen.has_penalties,
    )
    engine = Engine(
        model,
        config,
        report=lambda name, seconds: _status(f"compiled {name}"),
        decode=tokenizer.decode,
        program_cache=ProgramCache(default_folder()),
    )
    _status("")
    return ChatSession(engine, render, chosen, history)


def _status(words: str) -> None:
    """A line that the next one replaces, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def _lines(interactive: bool) -> Iterator[str]:
    """Lines of standard input, without surrounding spaces, until its end."""
    while True:
        try:
            yield input("> " if interactive else "").strip()
        except EOFError:
            return


def _answer(session: "ChatSession", text: str, *, echo: bool) -> None:
    """Prints an answer as it comes, then its figures."""
    from serving.chat.session import MessageTooLong

    if echo:
        print(f"> {text}")
    pieces, before = session.ask(text), session.forgotten
    try:
        with _interrupts() as stopped:
            for piece in pieces:
                print(piece, end="", flush=True)
                if stopped:
                    pieces.close()
        print()
    except MessageTooLong as why:
        print(f"{why}", file=sys.stderr)
        return
    output = session.output
    count = len(output.output_ids) if output and not stopped else 0
    words = "stopped" if stopped else f"{count} tokens"
    figures = f"[{words}, first after {session.first_token_s:.2f} s, {session.tok_per_s:.1f} tokens/s]"
    print(figures, file=sys.stdout if echo else sys.stderr)
    if session.forgotten > before:
        print(f"[the first {session.forgotten} messages no longer fit and are forgotten]", file=sys.stderr)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """While the block runs, Ctrl-C fills the list instead of raising: a step of the engine ends whole."""
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    before: Any = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    cli.run(main)
