"""From a checkpoint to a served model, everything compiled."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mixattn import hf
from mixattn.chat_template import special_tokens
from serving import model_engine
from serving.config import EngineConfig
from serving.http.grammar import GrammarCompiler
from serving.http.loop import EngineLoop
from serving.http.options import StartOptions, engine_config
from serving.http.prompts import PromptReader
from serving.http.service import ServedModel, Service
from serving.http.settings import HttpLimits
from serving.http.templates import ChatTemplate, template_of
from serving.http.token_text import TokenTexts


class Starter:
    """Loads and compiles in a thread, then hands the model to the service.

    Args:
      override: changes the engine's config, as flags say.
      say: prints a line.
    """

    def __init__(
        self,
        service: Service,
        loop: EngineLoop,
        options: StartOptions,
        limits: HttpLimits,
        override: Callable[[EngineConfig], EngineConfig],
        say: Callable[[str], None],
    ) -> None:
        self._service, self._loop = service, loop
        self._options, self._limits = options, limits
        self._override, self._say = override, say

    async def run(self) -> None:
        """Raises ValueError if the checkpoint cannot be served."""
        events = asyncio.get_running_loop()
        began_s = time.monotonic()
        engine, model = await asyncio.to_thread(self._load)
        programs, compile_s = engine.stats().programs, time.monotonic() - began_s
        self._say(f"{programs} programs in {compile_s:.1f} s")
        self._loop.start(engine, events)
        self._service.model = model

    def _load(self) -> tuple[Any, ServedModel]:
        from serving.engine.program_cache import ProgramCache, default_folder
        from serving.loading import load_engine

        options = self._options
        path = options.checkpoint
        config = self._override(configured(options))
        model = served_model(options, config, self._limits, self._say)
        tokenizer = model.prompts.tokenizer
        engine = load_engine(
            path,
            config,
            dtype=options.dtype,
            quantize=options.quantize,
            log=self._loop.record,
            report=lambda name, seconds: self._say(f"compiled {name} in {seconds:.1f} s"),
            decode=None if tokenizer is None else tokenizer.decode,
            program_cache=ProgramCache(default_folder()),
        )
        return engine, model


def configured(options: StartOptions) -> EngineConfig:
    """The engine's config for a checkpoint."""
    path = options.checkpoint
    return engine_config(hf.read_config(path), options, list(model_engine.eos_ids(path)))


def served_model(
    options: StartOptions, config: EngineConfig, limits: HttpLimits, say: Callable[[str], None]
) -> ServedModel:
    """All that is served of a checkpoint but its weights."""
    path = options.checkpoint
    tokenizer = hf.load_tokenizer(path) if hf.has_tokenizer(path) else None
    settings = hf.tokenizer_settings(path)
    template = _template(options, settings, limits)
    if template.plain and tokenizer is not None:
        say(
            f"warning: {path} has no chat template; chats are sent as plain lines of "
            "`role: content` (--chat_template=FILE names one)"
        )
    return ServedModel(
        name=options.name,
        max_tok=config.max_request_tok,
        vocab=hf.read_config(path).vocab_size,
        prompts=PromptReader(tokenizer, template, ThreadPoolExecutor(2, "tokenize")),
        texts=None if tokenizer is None else TokenTexts(tokenizer),
        defaults=model_engine.sampling_defaults(hf.generation_settings(path)),
        settings=special_tokens(settings) | {"tokenizer_class": settings.get("tokenizer_class")},
        eos_ids=config.eos_ids,
        grammars=(
            GrammarCompiler(tokenizer, config.eos_ids) if config.grammar and tokenizer is not None else None
        ),
    )


def _template(options: StartOptions, settings: Any, limits: HttpLimits) -> ChatTemplate:
    if options.chat_template is not None:
        source = options.chat_template.read_text(encoding="utf-8")
        return ChatTemplate(source, special_tokens(settings), limits)
    return ChatTemplate(template_of(settings), special_tokens(settings), limits)
