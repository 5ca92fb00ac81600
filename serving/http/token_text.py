"""The bytes of single tokens, which a decoder only gives for whole texts.

A token may be part of a character. Byte-level vocabularies spell bytes with printable characters (GPT-2's
table), SentencePiece ones write `<0xE2>` and U+2581 for a space.
"""

import json
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def gpt2_bytes() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class TokenTexts:
    """Bytes and printable text of each token of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        raw = json.loads(tokenizer.to_str())
        self._special = {t["id"]: t["content"] for t in raw.get("added_tokens") or []}
        decoder = json.dumps(raw.get("decoder") or {})
        self._table = gpt2_bytes() if '"ByteLevel"' in decoder else None
        self._sentencepiece = '"ByteFallback"' in decoder or "▁" in decoder
        self._known: dict[int, tuple[str, bytes]] = {}

    def bytes_of(self, id: int) -> bytes:
        return self._of(id)[1]

    def text_of(self, id: int) -> str:
        """The token as text; one that is not whole characters prints as "bytes:\\xe2\\x80"."""
        return self._of(id)[0]

    def _of(self, id: int) -> tuple[str, bytes]:
        found = self._known.get(id)
        if found is None:
            raw = self._read(id)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
            found = self._known[id] = text, raw
        return found

    def _read(self, id: int) -> bytes:
        if id in self._special:
            return self._special[id].encode("utf-8", "replace")
        word = self._tokenizer.id_to_token(id)
        if word is None:
            return b""
        if self._table is not None and all(c in self._table for c in word):
            return bytes(self._table[c] for c in word)
        if self._sentencepiece:
            if byte := _BYTE.fullmatch(word):
                return bytes([int(byte[1], 16)])
            return word.replace("▁", " ").encode()
        return self._tokenizer.decode([id], skip_special_tokens=False).encode()

    def is_special(self, id: int) -> bool:
        return id in self._special


class OffsetWalk:
    """Where each token of a text begins, in characters; a token in mid character begins at that character.

    Args:
      text: the whole text, if it is known: special tokens count only where it spells them, and a space that
        a SentencePiece vocabulary puts before the first word does not count.
    """

    def __init__(self, texts: TokenTexts, text: str | None = None, *, base: int = 0) -> None:
        self._texts, self._text = texts, None if text is None else text.encode("utf-8", "replace")
        self._at, self._characters, self._base = 0, 0, base

    def step(self, id: int) -> int:
        """The offset of the next token."""
        raw = self._spelled(id)
        inside = bool(raw) and raw[0] & 0xC0 == 0x80 and self._characters > 0
        offset = self._base + self._characters - inside
        self._at += len(raw)
        self._characters += sum(byte & 0xC0 != 0x80 for byte in raw)
        return offset

    def _spelled(self, id: int) -> bytes:
        """What of the token's bytes is in the text."""
        raw, special = self._texts.bytes_of(id), self._texts.is_special(id)
        if self._text is None:
            return b"" if special else raw
        if self._text.startswith(raw, self._at):
            return raw
        if special:
            return b""
        return raw[1:] if raw[:1] == b" " and self._text.startswith(raw[1:], self._at) else raw
