"""The dashboard and the documents beside it."""

import http.client
import json
import re
import time

import pytest

from tests.browser import CHROMIUM, DRIVER, chromium

NAME = "<img src=x onerror=alert(1)>"


def snapshot(server) -> dict:
    """The first event of the dashboard's stream."""
    http_ = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    http_.request("GET", "/dashboard/events")
    answer = http_.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")
    try:
        return json.loads(answer.readline().removeprefix(b"data: "))
    finally:
        http_.close()


def test_everything_comes_from_here_under_a_strict_policy(server):
    for path in ("/dashboard", "/dashboard/dashboard.css", "/dashboard/dashboard.js", "/dashboard/parts.js"):
        status, headers, content = server.request("GET", path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert not re.search(rb"https?://(?!www\.w3\.org)", content)
        assert b"innerHTML" not in content
        assert not re.search(rb"<script>|\son\w+=|style=", content)
    assert server.get("/dashboard/secrets")[0] == 404


def test_the_snapshot_tells_what_the_engine_knows(server):
    server.complete(user=NAME, max_tokens=3, ignore_eos=True)
    shown = snapshot(server)
    assert shown["state"] == "ready"
    mine = next(c for c in shown["clients"] if c["name"] == NAME)
    assert (mine["running"], mine["waiting"]) == (0, 0)
    assert mine["served"] >= 6
    assert shown["bound"] > 0
    assert {p["kind"] for p in shown["pools"]} == {"full", "sliding"}
    assert shown["ttft_s"]["p50"] > 0


def test_many_names_stay_few_in_metrics_and_the_page(server):
    for i in range(70):
        server.complete(user=f"client {i}", max_tokens=1)
    text = server.get("/metrics")[1].decode()
    labels = set(re.findall(r'service_tokens_total\{client="((?:[^"\\]|\\.)*)"', text))
    assert len(labels) <= 65
    assert "other" in labels
    assert len(snapshot(server)["clients"]) <= 64


def test_metrics_are_what_prometheus_reads(server):
    from prometheus_client.parser import text_string_to_metric_families

    server.complete(user='a"b\\c')
    families = {f.name for f in text_string_to_metric_families(server.get("/metrics")[1].decode())}
    assert {"mixattn:prompt_tokens", "mixattn:time_to_first_token_seconds"} <= families


def test_other_servers_names_are_exported_where_asked_for():
    from serving.http.metrics import ServerMetrics

    assert b"vllm:" not in ServerMetrics("m").text()
    text = ServerMetrics("m", compat=True).text()
    for name in (
        b"vllm:num_requests_running",
        b"sglang:num_queue_reqs",
        b"vllm:time_to_first_token_seconds_bucket",
    ):
        assert name in text


def test_openapi_lists_every_route(server):
    document = server.get("/openapi.json")[1]
    assert document["openapi"].startswith("3.")
    for path in ("/v1/completions", "/v1/chat/completions", "/generate", "/tokenize", "/abort_request"):
        assert "post" in document["paths"][path]
    for path in document["paths"]:
        if "get" in document["paths"][path] and "{" not in path:
            assert server.get(path)[0] == 200, path


@pytest.mark.long
def test_a_browser_shows_names_as_text_and_complains_of_nothing(server):
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromium-driver (apt-get install)")
    server.complete(user=NAME)
    page = chromium("--window-size=420,900")
    try:
        page.get(f"http://127.0.0.1:{server.port}/dashboard")
        deadline_s = time.monotonic() + 20
        while NAME not in page.find_element("tag name", "body").text and time.monotonic() < deadline_s:
            time.sleep(0.2)
        # In one call: the rows are replaced every second.
        titles = "return [...document.querySelectorAll('td.name')].map((cell) => cell.title)"
        assert NAME in page.execute_script(titles)
        assert not page.find_elements("css selector", "td.name img")
        wide = page.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0
        assert not page.get_log("browser")
    finally:
        page.quit()
