"""A checkpoint with an engine around it, as evaluations need it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mixattn import hf
from mixattn.evals.llm import as_text
from mixattn.model import Transformer
from mixattn.spec import ModelConfig
from serving.config import STOP_IDS, EngineConfig, Limits
from serving.engine.engine import Engine
from serving.engine.program_cache import ProgramCache, default_folder
from serving.offline import chat_lines

type Render = Callable[[Sequence[Mapping[str, str]]], list[int]]


class LoadedEngine(NamedTuple):
    """An engine, messages -> prompt ids, and text -> ids of an answer."""

    engine: Engine
    render: Render
    encode: Callable[[str], list[int]]


def load(path: Path, *, slots: int, max_request_tok: int, prompt_logprobs: bool = False) -> LoadedEngine:
    """Loads weights and tokenizer, and compiles, or fetches from the program cache, the engine's programs."""
    tokenizer = hf.load_tokenizer(path)
    model, _ = hf.load(path)
    length = min(max_request_tok, model.config.max_positions)
    config = EngineConfig(
        max_slots=slots,
        max_request_tok=length,
        limits=Limits(chunk_tok=min(256, length), step_tok=256, decode_steps=(4, 1)),
        chunk_sizes=(16,),
        prefill_rows=(1,),
        eos_ids=tuple(hf.stop_ids(path))[:STOP_IDS],
        logprobs=0 if prompt_logprobs else -1,
        prompt_logprobs=prompt_logprobs,
    )
    engine = Engine(model, config, decode=tokenizer.decode, program_cache=ProgramCache(default_folder()))
    return LoadedEngine(engine, renderer(path), lambda text: encode(tokenizer, text))


def encode(tokenizer: "object", text: str) -> list[int]:
    """Ids of a text that continues a prompt: no begin-of-text token."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)  # type: ignore[attr-defined]


def renderer(path: Path) -> Render:
    """Messages -> prompt ids, by the checkpoint's chat template; plain text where it has none."""
    tokenizer = hf.load_tokenizer(path)
    if isinstance(hf.tokenizer_settings(path).get("chat_template"), str):
        by_template = chat_lines.renderer(path, tokenizer)
        return lambda messages: by_template([dict(message) for message in messages])
    return lambda messages: encode(tokenizer, as_text(messages))


def untrained(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model of the same shape with random weights."""
    from flax import nnx

    return Transformer(config, rngs=nnx.Rngs(seed))
