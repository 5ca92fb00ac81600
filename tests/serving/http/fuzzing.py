"""Requests that no client means: mutated bodies, heads and chunkings, some cut off in the middle."""

import json
import random
import re
import socket
import threading
from collections import Counter

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
BASES = [
    ("POST", "/v1/completions", {"prompt": "the quick", "max_tokens": 2}),
    (
        "POST",
        "/v1/completions",
        {"prompt": [[1, 2], [3]], "n": 2, "max_tokens": 1, "echo": True},
    ),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True, "stop": ["b"], "seed": 1}),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 3, "guided_regex": "[ab]{2}"}),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True, "logprobs": True, "top_logprobs": 2}),
    ("POST", "/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
    ("POST", "/generate", {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 2}}),
    ("POST", "/tokenize", {"prompt": "abc", "add_special_tokens": True}),
    ("POST", "/detokenize", {"tokens": [1, 2, 3]}),
    ("POST", "/abort_request", {"rid": "x"}),
    ("GET", "/v1/models", None),
    ("GET", "/metrics", None),
    ("GET", "/tokenizer_info", None),
    ("GET", "/nope/%00/../..", None),
]
NASTY = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 0.5, -0.0, 1e308, 1e-320),
    *("", "a", "\x00", "\u2028", "🙂" * 50, "a" * 5000, "\n", "../..", "{{ 7*7 }}", "'; --"),
    *([], [[]], [None], [1, "a"], ["a"] * 300, [0] * 2000, {}, {"a": {"b": []}}, {"type": "text"}),
]
FIELDS = [
    *(
        "prompt",
        "messages",
        "model",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
    ),
    *("min_p", "seed", "stop", "stop_token_ids", "logprobs", "top_logprobs", "logit_bias", "stream", "echo"),
    *(
        "stream_options",
        "user",
        "priority",
        "cache_salt",
        "keep",
        "timeout",
        "rid",
        "response_format",
        "guided_json",
    ),
    *("guided_regex", "guided_grammar", "guided_choice", "tools", "tool_choice", "min_tokens", "best_of"),
    *(
        "suffix",
        "repetition_penalty",
        "presence_penalty",
        "ignore_eos",
        "input_ids",
        "sampling_params",
        "tokens",
    ),
]

HEADERS = ["X-Client-Id", "X-Request-Id", "Accept", "Authorization", "Expect", "Cookie", "X-" + "a" * 50]
VALUES = [
    "a",
    "Basic é",
    "Bearer é",
    "é",
    "x" * 300,
    "",
    "100-continue",
    "Bearer x",
    "\t",
    "Basic !!!",
    "close",
]


def mutated(draw: random.Random, body) -> bytes:
    """A body, a few of its fields replaced, and perhaps its bytes damaged."""
    body = json.loads(json.dumps(body))
    for _ in range(draw.randrange(3)):
        name = draw.choice([*body, *FIELDS])
        if draw.random() < 0.15:
            body.pop(name, None)
        else:
            body[name] = draw.choice(NASTY)
    if body.get("max_tokens") and draw.random() < 0.9 and not isinstance(body["max_tokens"], str):
        body["max_tokens"] = 2
    raw = bytearray(json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
    kind = draw.random()
    if kind < 0.15 and raw:
        for _ in range(draw.randrange(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
    elif kind < 0.2:
        del raw[draw.randrange(len(raw) + 1) :]
    elif kind < 0.25:
        at = draw.randrange(len(raw) + 1)
        raw[at:at] = draw.choice([b"\\ud800", b"NaN", b"[[[[", b"1e999", b"\xff", b'"', b"\x00" * 10])
    return bytes(raw)


def raw_request(draw: random.Random) -> bytes:
    method, path, body = draw.choice(BASES)
    if draw.random() < 0.03:
        method = draw.choice(["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "G\x00T", "POST"])
    lines = [f"{method} {path} HTTP/1.{draw.choice('1111111100')}", "Host: localhost"]
    raw = b"" if body is None else mutated(draw, body)
    kind = draw.random()
    odd = draw.choice(["text/plain", "", "a/b"])
    lines.append("Content-Type: " + ("application/json" if kind < 0.95 else odd))
    for _ in range(draw.randrange(3)):
        lines.append(f"{draw.choice(HEADERS)}: {draw.choice(VALUES)}")
    chunked = body is not None and draw.random() < 0.3
    if chunked:
        lines.append("Transfer-Encoding: chunked")
        pieces, left = b"", raw
        while left:
            size = draw.randrange(1, len(left) + 1)
            pieces += b"%x\r\n" % size + left[:size] + b"\r\n"
            left = left[size:]
        raw = pieces + b"0\r\n\r\n"
    elif body is not None:
        wrong = draw.random()
        length = len(raw) if wrong < 0.96 else draw.choice([0, len(raw) - 1, len(raw) // 2, -1])
        lines.append(f"Content-Length: {length}")
    lines += ["Connection: close", "", ""]
    head = "\r\n".join(lines).encode("utf-8")
    if draw.random() < 0.03:
        at = draw.randrange(len(head))
        head = head[:at] + bytes([draw.randrange(256)]) + head[at + 1 :]
    return head + raw


def fuzz(port: int, count: int, seed: int, threads: int = 16) -> tuple[Counter, list]:
    """How often each status came (0: the connection ended without one), and answers that must not be.

    Many requests wait for a time-out of the server, so that some threads are needed to keep it busy.
    """
    statuses: Counter = Counter()
    wrong: list = []
    lock = threading.Lock()

    def run(i: int) -> None:
        draw = random.Random(f"{seed} {i}")
        for _ in range(count // threads):
            raw = raw_request(draw)
            leaves = draw.random() < 0.05
            status, answer = one(port, raw, leaves, draw)
            with lock:
                statuses[status] += 1
                late = status == 504 and asks_for_an_end(raw)
                if status >= 500 and status != 503 and not late and len(wrong) < 5:
                    wrong.append((raw[:600], answer[:400]))

    running = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return statuses, wrong


def asks_for_an_end(raw: bytes) -> bool:
    """Whether a body names a time-out, perhaps before its first token; a chunk may end inside the word."""
    return b'"timeout"' in re.sub(rb"\r\n[0-9a-f]+\r\n", b"", raw)


def one(port: int, raw: bytes, leaves: bool, draw: random.Random) -> tuple[int, bytes]:
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            if leaves:
                sock.sendall(raw[: draw.randrange(len(raw)) + 1])
                return 0, b""
            sock.sendall(raw)
            while piece := sock.recv(65536):
                answer += piece
                sock.settimeout(2)  # where the damage hit "Connection: close", nothing more comes
    except OSError as why:
        if not answer:
            return 0, repr(why).encode()
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    return (int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0), answer
