"""From a checkpoint to a served model: sizes from the model and a memory budget, everything compiled."""

import asyncio
import dataclasses
import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mixattn.chat_template import special_tokens
from mixattn.spec import ModelConfig
from serving import fair, model_engine
from serving.config import EngineConfig, Limits
from serving.http.grammar import GrammarCompiler
from serving.http.prompts import PromptReader
from serving.http.service import ServedModel, Service
from serving.http.settings import HttpLimits
from serving.http.templates import ChatTemplate, template_of
from serving.http.token_text import TokenTexts
from serving.http.wire import MAX_TOP
from serving.kvcache.sizing import split

MAX_SLOTS = 16
CHUNK_TOK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What the command line says of the model.

    Attributes:
      kv_bytes: budget of K/V bytes.
      max_model_tok: longest request; 0 = the model's context, or what the budget holds.
      slots: outputs that run at once; 0 = from the budget, at most MAX_SLOTS.
      chat_template: a file to use instead of the checkpoint's template.
    """

    checkpoint: Path
    name: str
    kv_bytes: int
    max_model_tok: int = 0
    slots: int = 0
    policy: str = "vtc"
    policy_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str | None = None
    chat_template: Path | None = None


def served_name(checkpoint: Path) -> str:
    """A checkpoint's name: its folder's, or that of the run around a folder called "model"."""
    path = checkpoint.resolve()
    return path.parent.name if path.name == "model" else path.stem if path.is_file() else path.name


def engine_config(model: ModelConfig, options: StartOptions, eos_ids: list[int]) -> EngineConfig:
    """An engine that serves any request the protocol can ask for.

    Raises:
      ValueError: the budget holds no request, or an unknown policy.
    """
    if options.policy not in fair.POLICIES:
        raise ValueError(f"unknown policy {options.policy!r}; known: {', '.join(fair.POLICIES)}")
    longest = options.max_model_tok or model.max_positions
    if longest > model.max_positions and model.positions == "learned":
        raise ValueError(f"--max_model_len={longest}, but the model has {model.max_positions} positions")
    limits = Limits(chunk_tok=min(CHUNK_TOK, longest), step_tok=min(CHUNK_TOK, longest))
    pools = split(
        model, options.kv_bytes, request_tok=longest, page_size=model_engine.PAGE_TOK, limits=limits
    )
    slots = min(options.slots or MAX_SLOTS, pools.requests)
    bounded = slots == pools.requests
    return EngineConfig(
        max_slots=slots,
        page_size=model_engine.PAGE_TOK,
        num_pages=pools.num_pages if bounded else 0,
        window_pages=pools.window_pages if bounded else 0,
        max_request_tok=longest,
        policy=options.policy,
        policy_options=options.policy_options,
        limits=limits,
        eos_ids=tuple(eos_ids),
        prefill_rows=(1,),
        chunk_sizes=(min(32, limits.chunk_tok),),
        layers_per_program=-1,  # a deep stack starts several times faster
        penalties=True,
        logprobs=MAX_TOP,
        prompt_logprobs=True,
        grammar=importlib.util.find_spec("llguidance") is not None,
    )


class Starter:
    """Loads and compiles in a thread, then hands the model to the service.

    Args:
      override: changes the engine's config, as flags say.
      say: prints a line.
    """

    def __init__(
        self,
        service: Service,
        options: StartOptions,
        limits: HttpLimits,
        override: Callable[[EngineConfig], EngineConfig],
        say: Callable[[str], None],
    ) -> None:
        self._service, self._options, self._limits = service, options, limits
        self._override, self._say = override, say

    async def run(self) -> None:
        """Raises ValueError if the checkpoint cannot be served."""
        events = asyncio.get_running_loop()
        began_s = time.monotonic()
        engine, model = await asyncio.to_thread(self._load)
        programs, compile_s = engine.stats().programs, time.monotonic() - began_s
        self._say(f"{programs} programs in {compile_s:.1f} s")
        self._service.loop.start(engine, events)
        self._service.model = model

    def _load(self) -> tuple[Any, ServedModel]:
        from mixattn import hf
        from serving.engine.engine import Engine
        from serving.engine.program_cache import ProgramCache, default_folder

        options = self._options
        path = options.checkpoint
        tokenizer = hf.load_tokenizer(path) if hf.has_tokenizer(path) else None
        settings = hf.tokenizer_settings(path)
        eos_ids = list(model_engine.eos_ids(path))
        config = self._override(engine_config(hf.read_config(path), options, eos_ids))
        net, model_config = hf.load(path, dtype=options.dtype)
        engine = Engine(
            net,
            config,
            log=self._service.loop.record,
            report=lambda name, seconds: self._say(f"compiled {name} in {seconds:.1f} s"),
            decode=None if tokenizer is None else tokenizer.decode,
            program_cache=ProgramCache(default_folder()),
        )
        template = self._template(settings)
        if template.plain and tokenizer is not None:
            self._say(
                f"warning: {path} has no chat template; chats are sent as plain lines of "
                "`role: content` (--chat_template=FILE names one)"
            )
        prompts = PromptReader(tokenizer, template, ThreadPoolExecutor(2, "tokenize"))
        model = ServedModel(
            name=options.name,
            max_tok=config.max_request_tok,
            vocab=model_config.vocab_size,
            prompts=prompts,
            texts=None if tokenizer is None else TokenTexts(tokenizer),
            defaults=model_engine.sampling_defaults(hf.generation_settings(path)),
            settings=special_tokens(settings) | {"tokenizer_class": settings.get("tokenizer_class")},
            eos_ids=config.eos_ids,
            grammars=(
                GrammarCompiler(tokenizer, config.eos_ids)
                if config.grammar and tokenizer is not None
                else None
            ),
        )
        return engine, model

    def _template(self, settings: Any) -> ChatTemplate:
        named = self._options.chat_template
        if named is not None:
            return ChatTemplate(named.read_text(encoding="utf-8"), special_tokens(settings), self._limits)
        return ChatTemplate(template_of(settings), special_tokens(settings), self._limits)
