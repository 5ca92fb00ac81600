"""One conversation over an engine: its history, and answers as a stream of text.

The whole conversation goes to the engine each time; the prefix cache holds what was computed of it before.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass, field

from serving.engine.engine import Engine
from serving.offline.chat_lines import Message, RenderMessages
from serving.request import Output, Request, Sampling


class MessageTooLong(ValueError):
    """A message that does not fit even alone."""


@dataclass
class ChatSession:
    """A conversation.

    Attributes:
      render: messages -> prompt ids.
      sampling: of every answer; `max_tokens` is kept free for it.
      history: messages so far, a system message first if there is one.
      forgotten: messages dropped from the beginning because the conversation got too long.
      first_token_s, tok_per_s: of the last answer; the rate counts from its first token.
    """

    engine: Engine
    render: RenderMessages
    sampling: Sampling
    history: list[Message] = field(default_factory=list)
    forgotten: int = 0
    first_token_s: float = 0.0
    tok_per_s: float = 0.0
    output: Output | None = None

    def ask(self, text: str) -> Generator[str]:
        """Yields the answer in pieces. Closing the iterator stops it; what was said until then is kept.

        Raises:
          MessageTooLong: the message does not fit into the context; the history stays as it was.
        """
        ids = self._prompt({"role": "user", "content": text})
        id = self.engine.submit(Request(client="chat", prompt_ids=ids, sampling=self.sampling))
        pieces: list[str] = []
        begin_s, first_s, count = time.monotonic(), 0.0, 0
        try:
            while self.engine.live:
                for delta in self.engine.step():
                    first_s = first_s or time.monotonic()
                    count += len(delta.ids)
                    self.output = delta.output or self.output
                    if delta.text:
                        pieces.append(delta.text)
                        yield delta.text
        finally:
            if self.engine.cancel(id):
                while self.engine.live:
                    self.engine.step()
            spent_s = time.monotonic() - first_s
            self.first_token_s = first_s - begin_s if first_s else 0.0
            self.tok_per_s = (count - 1) / spent_s if count > 1 and spent_s > 0 else 0.0
            self.history.append({"role": "assistant", "content": "".join(pieces)})

    def _prompt(self, message: Message) -> list[int]:
        """Ids of the conversation with `message` at its end; forgets the oldest turns until they fit."""
        room_tok = self.engine.config.max_request_tok - self.sampling.max_tokens
        system = [m for m in self.history[:1] if m["role"] == "system"]
        turns = [*self.history[len(system) :], message]
        ids = self.render([*system, *turns])
        while len(ids) > room_tok and len(turns) > 2:
            turns = turns[2:]
            ids = self.render([*system, *turns])
        if len(ids) > room_tok:
            raise MessageTooLong(
                f"the message needs {len(ids)} tokens of prompt; there is room for {room_tok}"
            )
        self.forgotten += len(self.history) + 1 - len(system) - len(turns)
        self.history = [*system, *turns]
        return ids
