"""Prompts of a call as token ids; long texts are tokenised off the event loop."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from serving.http.errors import ApiError, bad_field
from serving.http.templates import ChatTemplate
from serving.http.wire import GenerationCall

INLINE_CHARS = 4096  # shorter texts cost less than handing them to another thread


class PromptReader:
    """Turns texts and messages into ids.

    Args:
      tokenizer: None = only ids are served.
      executor: threads for long texts.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate, executor: Executor) -> None:
        self.tokenizer, self.template, self._executor = tokenizer, template, executor

    async def read(self, call: GenerationCall) -> tuple[list[list[int]], list[str]]:
        """Ids and texts of each prompt; texts only where the call echoes them.

        Raises:
          ApiError: 400: an empty prompt, or text without a tokenizer.
        """
        prompts = call.prompts
        if call.kind == "chat":
            variables = dict(call.template_variables)
            if call.tools is not None:
                if not self.template.knows_tools:
                    message = "the model's chat template knows no tools"
                    raise bad_field("tools", message, "unsupported_parameter")
                variables["tools"] = call.tools.shown
            text = await self.template.render(
                call.messages, variables, add_generation_prompt=call.add_generation_prompt
            )
            prompts = [text]
        ids = await self._ids(prompts, call.add_special)
        name = {"chat": "messages", "ids": "input_ids"}.get(call.kind, "prompt")
        for i, one in enumerate(ids):
            if not one:
                raise bad_field(name, f"prompt {i} has no tokens", "empty_prompt")
        texts = [self._text(p, call.skip_special) for p in prompts] if call.echo else [""] * len(ids)
        return ids, texts

    async def encode(self, text: str, add_special: bool) -> list[int]:
        return (await self._ids([text], add_special))[0]

    async def _ids(self, prompts: Sequence[str | list[int]], add_special: bool) -> list[list[int]]:
        texts = [p for p in prompts if isinstance(p, str)]
        if not texts:
            return [p for p in prompts if not isinstance(p, str)]
        if self.tokenizer is None:
            raise bad_field("prompt", "the model has no tokenizer; send token ids", "unsupported_value")
        encode = functools.partial(self._encode, texts, add_special)
        if sum(map(len, texts)) <= INLINE_CHARS:
            return encode()
        return await self._aside(encode)

    def _encode(self, texts: list[str], add_special: bool) -> list[list[int]]:
        try:
            if add_special:
                from mixattn.hf import encode  # imports jax, as the model has by now

                return [encode(self.tokenizer, text) for text in texts]
            return [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        except Exception as why:  # the library raises a bare Exception
            raise ApiError(400, f"the text cannot be tokenised: {why}", param="prompt") from None

    async def _aside[T](self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _text(self, prompt: str | list[int], skip_special: bool) -> str:
        if isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise bad_field("echo", "echo needs a tokenizer, and the model has none", "unsupported_value")
        try:
            text: str = self.tokenizer.decode(prompt, skip_special_tokens=skip_special)
        except (OverflowError, TypeError):
            raise bad_field("prompt", "prompt names token ids that do not exist") from None
        return text
