"""Keys: who may, whose share, whose limits; and names that buy nothing."""

import base64
import hashlib
import signal
import time

import pytest

from serving.http.clients import HttpCaller
from serving.http.keys import KeyRing, read

SECRETS = {"alice": "sk-alice", "bob": "sk-bob", "carol": "sk-carol"}


def line(name, *rest):
    return " ".join([name, hashlib.sha256(SECRETS[name].encode()).hexdigest(), *rest]) + "\n"


def bearer(name):
    return {"Authorization": f"Bearer {SECRETS[name]}"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    from tests.serving.http.tiny_server import ServerProcess

    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(
        "# keys\n" + line("alice", "2", "inflight=4,admin") + line("bob", "tokens_per_minute=300")
    )
    running = ServerProcess(f"--api_keys={path}")
    running.keys_path = path
    try:
        yield running.ready()
        assert running.stop() == 0
        assert not any(secret in running.errors() for secret in SECRETS.values())
    finally:
        running.close()


def test_without_a_key_only_health_answers(keyed):
    assert keyed.get("/health")[0] == 200
    for path in (
        "/v1/models",
        "/metrics",
        "/get_server_info",
        "/tokenizer_info",
        "/dashboard",
        "/dashboard/events",
    ):
        status, _, answer = keyed.request("GET", path)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), path
    assert keyed.post("/v1/completions", {"prompt": "a"})[0] == 401
    assert keyed.post("/v1/completions", {"prompt": "a"}, headers={"Authorization": "Bearer wrong"})[0] == 401
    assert keyed.get("/v1/models", headers=bearer("alice"))[0] == 200


def test_a_browser_is_asked_for_the_key_and_may_send_it_as_a_password(keyed):
    assert keyed.request("GET", "/dashboard")[1]["www-authenticate"].startswith("Basic")
    word = base64.b64encode(b"me:sk-alice").decode()
    assert keyed.get("/dashboard", headers={"Authorization": f"Basic {word}"})[0] == 200


def test_limits_of_a_key_are_429_with_a_time_to_wait(keyed):
    status, headers, answer = keyed.request(
        "POST", "/v1/completions", {"prompt": "a", "n": 5, "max_tokens": 1}, bearer("alice")
    )
    assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "too_many_inflight", "1")
    assert (
        keyed.post("/v1/completions", {"prompt": "a", "n": 4, "max_tokens": 1}, headers=bearer("alice"))[0]
        == 200
    )
    codes = []
    for _ in range(4):  # 100 are taken each time; what an answer did not use comes back
        body = {"prompt": "a", "max_tokens": 99, "ignore_eos": True}
        status, headers, answer = keyed.request("POST", "/v1/completions", body, bearer("bob"))
        codes.append(status)
    assert codes[:2] == [200, 200]
    assert codes[-1] == 429
    assert 1 <= int(headers["retry-after"]) <= 60


def test_a_priority_is_for_keys_that_may(keyed):
    status, answer = keyed.post("/v1/completions", {"prompt": "a", "priority": -1}, headers=bearer("alice"))
    assert (status, answer["error"]["param"]) == (403, "priority")


def test_a_key_cannot_see_anothers_cache_or_end_its_requests(keyed, tmp_path):
    prompt = list(range(1, 65)) * 2
    body = {"prompt": prompt, "max_tokens": 1}

    def hit(name):
        answer = keyed.post("/v1/completions", body, headers=bearer(name))[1]
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    keyed.keys_path.write_text(line("alice", "admin") + line("carol", "priority"))
    keyed.process.send_signal(signal.SIGHUP)
    deadline_s = time.monotonic() + 5
    while keyed.get("/v1/models", headers=bearer("carol"))[0] != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert keyed.get("/v1/models", headers=bearer("bob"))[0] == 401  # gone with the reload
    assert hit("alice") == 0
    assert hit("alice") > 64
    assert hit("carol") == 0
    assert keyed.post("/flush_cache", headers=bearer("carol"))[0] == 403
    assert keyed.post("/v1/completions", {"prompt": "a", "priority": -1}, headers=bearer("carol"))[0] == 200
    keyed.keys_path.write_text("broken\n")
    keyed.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert keyed.get("/v1/models", headers=bearer("alice"))[0] == 200  # the old keys stay


def test_a_users_name_is_one_part_of_a_path(tmp_path):
    path = tmp_path / "keys"
    path.write_text(line("alice", "0.5", "priority"))
    ring = KeyRing(path)
    key = ring.find("sk-alice")
    assert key is not None
    assert key.priority
    assert ring.find("sk-bob") is None
    assert ring.weights == {"alice": key.weight}
    caller = HttpCaller(key, None, "1.2.3.4")
    assert caller.client("bob/../x%") == "alice/bob%2F..%2Fx%25"
    assert caller.client(None) == "alice"
    assert HttpCaller(None, "head", "1.2.3.4").client(None) == "head"
    assert HttpCaller(None, None, "1.2.3.4").client("") == "1.2.3.4"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice\n",
        "alice abc\n",
        "a/b " + "0" * 64,
        "alice " + "0" * 64 + " 0\n",
        "alice " + "0" * 64 + " 1 fast\n",
        "alice " + "0" * 64 + " inflight=x\n",
        "alice " + "0" * 64 + "\nalice " + "1" * 64,
        "alice " + "0" * 64 + "\nbob " + "0" * 64,
    ],
)
def test_a_bad_file_of_keys_is_one_sentence(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        read(path)
