"""What hurt a prototype: each trap of the HTTP border, by name, against a real process on a real socket."""

import json
import socket
import time

import pytest

from tests.serving.http.tiny_server import exchange, raw_post


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split()[1])


def error_of(answer: bytes) -> dict:
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_head_that_never_ends_is_answered_408_and_closed(server):
    began_s = time.monotonic()
    sock = server.connect()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
    answer = exchange(sock, b"X-Slow: 1\r\n")
    assert status_of(answer) == 408
    assert error_of(answer)["code"] == "request_timeout"
    assert 0.9 < time.monotonic() - began_s < 6


def test_a_head_that_drips_is_answered_408_too(server):
    sock = server.connect()
    began_s = time.monotonic()
    sock.sendall(b"GET /health HTTP/1.1\r\n")
    while time.monotonic() - began_s < 0.8:  # each byte arrives in time, the head does not
        sock.sendall(b"a")
        time.sleep(0.1)
    assert status_of(exchange(sock, b"")) == 408


def test_a_second_head_on_a_kept_connection_is_timed_as_well(server):
    sock = server.connect()
    sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while b'"ok"}' not in answer:  # head and body may come apart
        answer += sock.recv(65536)
    answer = exchange(sock, b"GET /health HTTP/1.1\r\n")
    assert status_of(answer) == 408


def test_a_body_that_never_comes_is_answered_408_and_closed(server):
    head = raw_post("/v1/completions", b"").replace(b"Content-Length: 0", b"Content-Length: 100")
    answer = exchange(server.connect(), head + b'{"prompt"')
    assert status_of(answer) == 408
    assert server.until_idle()["running"] == 0


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_head_of_200_kilobytes_is_refused(server, pieces):
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * 200_000 + b"\r\n\r\n"
    sock = server.connect()
    step = len(head) // pieces + 1
    for i in range(0, len(head), step):
        try:
            sock.sendall(head[i : i + step])
        except (BrokenPipeError, ConnectionResetError):
            break
    assert status_of(exchange(sock, b"")) == 431


def test_twenty_thousand_header_lines_are_refused(server):
    lines = b"".join(b"X-%d: 1\r\n" % i for i in range(20_000))
    assert (
        status_of(
            exchange(server.connect(), b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
        )
        == 431
    )


def test_a_hundred_and_one_short_lines_are_refused_and_a_hundred_are_not(server):
    def answer(count):
        lines = b"".join(b"X-%d: 1\r\n" % i for i in range(count - 2))
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        return status_of(exchange(server.connect(), head + lines + b"\r\n"))

    assert answer(101) == 431
    assert answer(100) == 200


def test_content_length_beside_transfer_encoding_is_refused_and_closed(server):
    raw = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    answer = exchange(server.connect(), raw)
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1") == 1  # what followed was not taken for a request
    assert error_of(answer)["code"] == "invalid_http"


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: 1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_the_shape_of_every_error(server, raw):
    sock = server.connect()
    sock.sendall(raw)
    sock.shutdown(socket.SHUT_WR) if raw.startswith(b"\x16") else None
    answer = exchange(sock, b"", limit_s=2)
    if raw.startswith(b"\x16"):  # it left before its first line was whole
        return
    assert 400 <= status_of(answer) < 500
    assert error_of(answer)


def test_half_a_character_is_refused_in_every_text(server):
    for body in (
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ["a", "\\udfff"]}',
        b'{"prompt": "a", "user": "\\ud800"}',
        b'{"prompt": "a", "stop": "\\udc00"}',
        b'{"prompt": "a", "\\ud800": 1}',
    ):
        status, answer = server.post("/v1/completions", body)
        assert (status, answer["error"]["code"]) == (400, "invalid_unicode"), body
    messages = b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'
    assert server.post("/v1/chat/completions", messages)[0] == 400
    assert b"ud800" not in server.get("/metrics")[1]
    status, _ = server.post("/v1/completions", b'{"prompt": "\\ud83d\\ude00", "max_tokens": 1}')
    assert status == 200  # both halves together are a character


def test_eight_hundred_thousand_outputs_are_refused(server):
    status, answer = server.post("/v1/completions", {"prompt": ["a"] * 100_000, "n": 8})
    assert (status, answer["error"]["param"]) == (400, "prompt")
    assert server.post("/v1/completions", {"prompt": ["a"] * 64, "n": 8})[0] == 400
    assert server.stats()["waiting"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "x": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "top_p": -1e999}',
        b'{"prompt": "a", "max_tokens": 1e3}',
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "max_tokens": true}',
        b'{"prompt": "a", "max_tokens": 18446744073709551616}',
        b'{"prompt": "a", "n": -1}',
        b'{"prompt": "a", "n": 0}',
        b'{"prompt": "a", "logit_bias": {"1": NaN}}',
        b'{"prompt": "a", "logit_bias": {"-1": 1}}',
        b'{"prompt": "a", "logit_bias": {"999999999": 1}}',
        b'{"prompt": "a", "logit_bias": [1]}',
        b'{"prompt": "a", "stop_token_ids": [99999999999]}',
        b'{"prompt": [1, 99999999]}',
        b'{"prompt": [1, -1]}',
        b'{"prompt": [1.5]}',
        b'{"prompt": [true]}',
        b'{"prompt": []}',
        b'{"prompt": [[]]}',
        b'{"prompt": ""}',
        b'{"prompt": null}',
        b'{"prompt": {"a": 1}}',
        b"{}",
        b"[]",
        b"null",
        b"",
        b"\xff\xfe",
        b'{"prompt": "a"',
        b'{"prompt": "a", "user": "a\\nb"}',
        b'{"prompt": "a", "user": "' + b"u" * 257 + b'"}',
        b'{"prompt": "a", "timeout": 0}',
        b'{"prompt": "a", "priority": 0.5}',
        b'{"prompt": "a", "stop": ["' + b"s" * 2000 + b'"]}',
        b'{"prompt": "a", "stop": ' + json.dumps(["x"] * 17).encode() + b"}",
        b'{"prompt": "a", "best_of": 2}',
        b'{"prompt": "a", "suffix": "b"}',
        b'{"prompt": "a", "max_tokens": 100000}',
        b'{"prompt": "a", "max_tokens": 0}',
        b'{"prompt": "a", "stream_options": {}}',
        b'{"prompt": "a", "logprobs": 21}',
        b'{"prompt": "a", "temperature": -1}',
        b'{"prompt": "a", "top_p": -1}',
        b'{"prompt": "a", "min_tokens": 99}',
    ],
)
def test_a_bad_body_is_400_with_the_error_object(server, body):
    status, answer = server.post("/v1/completions", body)
    assert status == 400, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"


def test_seeds_of_any_size_and_an_empty_bias_are_no_mistake(server):
    same = [server.complete(seed=2**70, temperature=1.0)["choices"][0]["text"] for _ in range(2)]
    assert same[0] == same[1]
    server.complete(seed=-(2**80))
    server.complete(logit_bias=[])
    server.complete(logit_bias=None, stop=None, stop_token_ids=None)


def test_unknown_fields_pass_and_are_logged_once(server):
    server.complete(brand_new_field=1)
    server.complete(brand_new_field=2)
    assert server.errors().count("brand_new_field") == 1


def test_a_score_only_request_is_legal(server):
    answer = server.complete(prompt="the quick", max_tokens=0, echo=True, logprobs=1)
    choice = answer["choices"][0]
    assert choice["text"] == "the quick"
    assert answer["usage"]["completion_tokens"] == 0
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]


def test_a_body_over_the_limit_is_413_and_the_server_lives(server):
    big = b'{"prompt": "' + b"a" * (10 << 20) + b'"}'
    assert status_of(exchange(server.connect(), raw_post("/v1/completions", big))) == 413
    chunk = b"%x\r\n" % (1 << 20) + b"a" * (1 << 20) + b"\r\n"
    head = raw_post("/v1/completions", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    assert status_of(exchange(server.connect(), head + chunk * 10 + b"0\r\n\r\n")) == 413
    assert server.get("/health")[0] == 200


def test_a_packed_body_is_refused_as_such(server):
    import gzip

    body, packed = gzip.compress(b'{"prompt": "a", "max_tokens": 1}'), {"Content-Encoding": "gzip"}
    status, _, answer = server.request("POST", "/v1/completions", body, packed)
    assert (status, answer["error"]["code"]) == (415, "unsupported_encoding")
    server.complete(prompt="a")
    same = {"Content-Encoding": "identity"}
    assert server.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, same)[0] == 200


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "self", "variables", "other"])
def test_a_templates_variables_may_have_any_name_but_those_of_fields(server, name):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    status, answer = server.post("/v1/chat/completions", {**body, "chat_template_kwargs": {name: True}})
    if name in ("messages", "tools", "add_generation_prompt"):
        assert (status, answer["error"]["param"]) == (400, "chat_template_kwargs")
    else:
        assert status == 200, answer


def test_pipelined_requests_are_answered_in_order(server):
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchange(server.connect(), one * 3 + last)
    assert [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 200, 404]


def test_the_frameworks_own_errors_have_the_same_shape(server):
    for method, path, status in (
        ("GET", "/nope", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
    ):
        found, _, answer = server.request(method, path)
        assert (found, set(answer["error"])) == (status, {"message", "type", "param", "code"})
    status, _, answer = server.request("POST", "/v1/completions", b"prompt=a", {"Content-Type": "text/plain"})
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


def test_a_name_that_only_points_here_is_refused(server):
    status, _, answer = server.request("GET", "/v1/models", headers={"Host": "evil.example"})
    assert (status, answer["error"]["code"]) == (421, "misdirected_request")
    assert server.request("GET", "/v1/models", headers={"Host": "localhost:1"})[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1.evil.example:8000", "null"])
def test_a_page_of_another_site_is_refused(server, origin):
    status, _, answer = server.request("POST", "/flush_cache", b"", {"Origin": origin})
    assert (status, answer["error"]["code"]) == (403, "foreign_origin")
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.request("POST", "/flush_cache", b"", own)[0] == 200


def test_a_preflight_allows_nothing(server):
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = server.request("OPTIONS", "/v1/completions", None, asks)
    assert status in (403, 405)
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "value",
    [b"Basic \x9f!!", b"Basic \xff\xfe", b"Basic !", b"Basic /w==", b"Bearer \xe9", b"\xa0", b"Basic"],
)
def test_any_bytes_may_stand_for_a_key(server, value):
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: "
    assert status_of(exchange(server.connect(), head + value + b"\r\n\r\n")) == 200  # keys are off here


def test_one_connection_too_many_is_answered_503(server):
    held = [server.connect() for _ in range(64)]
    try:
        time.sleep(0.2)
        answer = exchange(server.connect(), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status_of(answer) == 503
        assert b"retry-after" in answer.lower()
    finally:
        for sock in held:
            sock.close()
    time.sleep(0.2)
    assert server.get("/health")[0] == 200


def test_request_ids_come_back(server):
    assert server.request("GET", "/health", headers={"X-Request-Id": "abc-1"})[1]["x-request-id"] == "abc-1"
    assert len(server.request("GET", "/health")[1]["x-request-id"]) == 32
    broken = server.request("GET", "/health", headers={"X-Request-Id": "a b"})[1]["x-request-id"]
    assert len(broken) == 32
