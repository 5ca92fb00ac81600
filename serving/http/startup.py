"""From a checkpoint to a served model, everything compiled."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mixattn.chat_template import special_tokens
from serving import model_engine
from serving.config import EngineConfig
from serving.http.grammar import GrammarCompiler
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
        from serving.engine.program_cache import ProgramCache, default_folder
        from serving.loading import load_engine

        options = self._options
        path = options.checkpoint
        tokenizer = hf.load_tokenizer(path) if hf.has_tokenizer(path) else None
        settings = hf.tokenizer_settings(path)
        eos_ids = list(model_engine.eos_ids(path))
        config = self._override(engine_config(hf.read_config(path), options, eos_ids))
        engine = load_engine(
            path,
            config,
            dtype=options.dtype,
            quantize=options.quantize,
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
            vocab=engine.model_config.vocab_size,
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
