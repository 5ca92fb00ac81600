"""The tokenizer in a GGUF file's metadata, as a `tokenizers.Tokenizer`, and the settings beside it.

`tokenizer.ggml.model` names the kind: "gpt2" is byte-level BPE with merges and a pre-tokenizer named by
`tokenizer.ggml.pre`; "llama" is SentencePiece BPE, whose merges follow from the scores of its pieces. The
splitting rules are llama.cpp's (src/llama-vocab.cpp); where they shorten the original's, the original stands.
"""

from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mixattn.hf.gguf_file import GGUFFile

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # gguf.TokenType
_SPACE = "\u2581"  # what SentencePiece writes for a space
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")  # as llama.cpp detects
_MAX_STOP_IDS = 4

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _PreTokenizer(NamedTuple):
    """Attributes:
    patterns: the text is split by each in turn.
    whole_words: a piece that is a token is not merged from its characters.
    add_bos: whether a text begins with the begin-of-text token, unless the file says.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_DIGITS = _PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3 = _PreTokenizer((_WORDS + r"\p{N}{1,3}" + _REST,), whole_words=True, add_bos=True)
_QWEN2 = _PreTokenizer((_WORDS + r"\p{N}" + _REST,))
_PRE_TOKENIZERS = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "phi-2"), _PreTokenizer((_GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "pixtral", "falcon3"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _PreTokenizer(_LLAMA3.patterns)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    "tekken": _PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
}


class _Vocabulary(NamedTuple):
    tokens: list[str]
    types: list[int]
    ids: dict[str, int]


def read_tokenizer(file: GGUFFile) -> tokenizers.Tokenizer:
    """Builds the tokenizer.

    Raises:
      ValueError: no tokenizer, a kind or a pre-tokenizer that is not known, or inconsistent tables.
    """
    kind = _get(file, "model")
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(file)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(file), True
    else:
        raise ValueError(
            f"{file.path} has tokenizer model {kind!r}; known are gpt2 (BPE) and llama (SentencePiece)"
        )
    vocabulary = _vocabulary(file)
    for token, type in zip(vocabulary.tokens, vocabulary.types):
        if type in (_CONTROL, _UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif type == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    if template := _template(file, vocabulary, add_bos):
        tokenizer.post_processor = template
    return tokenizer


def tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    """The tokenizer_config.json that says the same: chat template and named special tokens."""
    tokens = file.metadata.get(_PREFIX + "tokens", [])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: _get(file, f"{key}_token_id") for name, key in names.items()}
    settings: dict[str, Any] = {
        name: tokens[id] for name, id in ids.items() if id is not None and 0 <= id < len(tokens)
    }
    if template := file.metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings


def generation_config(file: GGUFFile) -> dict[str, Any]:
    """The generation_config.json that says the same: token ids, and sampling settings if there are any."""
    found = {
        f"{name}_token_id": _get(file, f"{key}_token_id")
        for name, key in {"bos": "bos", "pad": "padding"}.items()
    }
    settings = {name: id for name, id in found.items() if id is not None}
    if stops := _stop_ids(file):
        settings["eos_token_id"] = stops
    sampling = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    values = {name: file.metadata.get(f"general.sampling.{key}") for key, name in sampling.items()}
    given = {name: value for name, value in values.items() if value is not None}
    return settings | ({"do_sample": True, **given} if given else {})


def _stop_ids(file: GGUFFile) -> list[int]:
    """The end-of-text token, and tokens that end a turn: named in the metadata or known by their text."""
    named = [_get(file, f"{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens, types = file.metadata.get(_PREFIX + "tokens", []), _get(file, "token_type", [])
    by_text = [
        i for i, type in enumerate(types) if type in (_CONTROL, _USER_DEFINED) and tokens[i] in _TURN_ENDS
    ]
    return list(dict.fromkeys(id for id in [*named, *by_text] if id is not None))[:_MAX_STOP_IDS]


def _get(file: GGUFFile, name: str, default: Any = None) -> Any:
    return file.metadata.get(_PREFIX + name, default)


def _vocabulary(file: GGUFFile) -> _Vocabulary:
    tokens = _get(file, "tokens")
    if not tokens:
        raise ValueError(f"{file.path} has no {_PREFIX}tokens")
    types = _get(file, "token_type") or [1] * len(tokens)
    ids = {token: i for i, token in enumerate(tokens)}
    if not len(types) == len(tokens) == len(ids):
        raise ValueError(
            f"{file.path}: {len(tokens)} tokens, {len(ids)} of them distinct, {len(types)} types"
        )
    return _Vocabulary(tokens, types, ids)


def _byte_level(file: GGUFFile) -> tuple[tokenizers.Tokenizer, bool]:
    """Byte-level BPE, and whether texts begin with the begin-of-text token by default."""
    name = _get(file, "pre")
    if name not in _PRE_TOKENIZERS:
        raise ValueError(f"{file.path} has pre-tokenizer {name!r}; known are {', '.join(_PRE_TOKENIZERS)}")
    pre, vocabulary = _PRE_TOKENIZERS[name], _vocabulary(file)
    merges = [tuple(merge.split(" ", 1)) for merge in _get(file, "merges", [])]
    for merge in merges:
        if len(merge) != 2 or "".join(merge) not in vocabulary.ids or not vocabulary.ids.keys() >= set(merge):
            raise ValueError(f"{file.path}: the merge {' '.join(merge)!r} names a token that is not there")
    model = models.BPE(vocabulary.ids, merges, ignore_merges=pre.whole_words)
    tokenizer = tokenizers.Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def _sentencepiece(file: GGUFFile) -> tokenizers.Tokenizer:
    """BPE that merges to the piece with the highest score first, with bytes as a fallback."""
    vocabulary, scores = _vocabulary(file), _get(file, "scores", [])
    if len(scores) != len(vocabulary.tokens):
        raise ValueError(f"{file.path}: {len(vocabulary.tokens)} tokens but {len(scores)} scores")
    unknown = _get(file, "unknown_token_id", 0)
    if not 0 <= unknown < len(vocabulary.tokens):
        raise ValueError(f"{file.path}: unknown token {unknown} of {len(vocabulary.tokens)}")
    model = models.BPE(
        vocabulary.ids,
        _merges(vocabulary, scores),
        unk_token=vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    prefixed = _get(file, "add_space_prefix", True)
    prepend = [normalizers.Prepend(_SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    whole = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*whole, *strip])
    return tokenizer


def _merges(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, the pieces with the highest scores first."""
    pieces = [i for i, type in enumerate(vocabulary.types) if type not in (_CONTROL, _BYTE, _UNKNOWN)]
    pieces.sort(key=lambda i: (-scores[i], i))
    ids = vocabulary.ids
    return [
        (piece[:at], piece[at:])
        for piece in (vocabulary.tokens[i] for i in pieces)
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]


def _template(file: GGUFFile, vocabulary: _Vocabulary, add_bos: bool) -> processors.TemplateProcessing | None:
    """Adds the begin-of-text and end-of-text tokens that the file asks for."""
    adds = {"bos": _get(file, "add_bos_token", add_bos), "eos": _get(file, "add_eos_token", False)}
    ids = {name: _get(file, f"{name}_token_id") for name, added in adds.items() if added}
    text = {
        name: vocabulary.tokens[id]
        for name, id in ids.items()
        if id is not None and id < len(vocabulary.tokens)
    }
    if not text:
        return None
    single = " ".join(part for part in (text.get("bos"), "$A", text.get("eos")) if part)
    return processors.TemplateProcessing(
        single=single, special_tokens=[(token, vocabulary.ids[token]) for token in text.values()]
    )
