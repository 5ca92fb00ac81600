"""The cluster's page in a real browser: Debian's Chromium, headless, through selenium."""

import os
import threading
import time
from pathlib import Path

import pytest

from tests.browser import NEEDS_CHROMIUM, chromium
from tests.serving.cluster.cluster_process import hurt

pytestmark = NEEDS_CHROMIUM
PHONE, DESK = (420, 900), (1200, 900)
NAME = "<img src=x onerror=alert(1)>"
# Where to keep pictures; without it none are kept.
PICTURES = os.environ.get("CLUSTER_PICTURES")


@pytest.fixture
def page(cluster):
    browser = chromium()
    try:
        browser.get(f"http://127.0.0.1:{cluster.port}/dashboard")
        yield ClusterPage(browser)
    finally:
        browser.quit()


class ClusterPage:
    """What a person sees."""

    def __init__(self, browser):
        self.browser = browser

    def texts(self, selector):
        """Of all elements, read in one call: the page is drawn anew every second."""
        read = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        return self.browser.execute_script(read, selector)

    def until(self, holds, limit_s=30.0):
        deadline_s = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline_s, self.texts("main")
            time.sleep(0.1)

    def fits(self, label):
        """Nothing is wider than the window, on a desk and on a phone."""
        for width, height in (DESK, PHONE):
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            over = self.browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert over <= 0, f"{label} is {over} pixels too wide at {width}"
            if PICTURES:
                Path(PICTURES).mkdir(parents=True, exist_ok=True)
                self.browser.get_screenshot_as_file(f"{PICTURES}/{label}-{width}.png")


def asked(cluster, over):
    """Streams of three clients, one after the other, until `over` is set."""

    def one(client):
        while not over.is_set():
            body = {"prompt": f"{client} asks", "user": client, "max_tokens": 400, "ignore_eos": True}
            for _ in cluster.stream("/v1/completions", body):
                if over.is_set():
                    break

    threads = [threading.Thread(target=one, args=[name]) for name in (NAME, "hot", "hot", "hot", "quiet")]
    for thread in threads:
        thread.start()
    return threads


def test_a_person_sees_who_runs_where_each_clients_credit_and_a_worker_that_dies_and_comes_back(
    cluster, page
):
    over = threading.Event()
    threads = asked(cluster, over)
    try:
        pids = cluster.until_up(2)
        place = min(pids)
        lanes = [f"worker {p}: up" for p in sorted(pids)]
        page.until(lambda: page.texts(".lane h3 b") == lanes)
        page.until(lambda: any("hot" in text and "running" in text for text in page.texts(".lane .who")))
        page.until(lambda: len(page.texts("#credits tbody tr")) >= 3)
        assert page.texts("#credits thead th") == ["client", *(f"worker {p}" for p in sorted(pids))]
        assert NAME in " ".join(page.texts("#clients td.name")), "names are text"
        assert not page.texts("td img, .lane img")
        page.fits("before")
        hurt(pids[place])
        page.until(lambda: f"worker {place}: up" not in page.texts(".lane h3 b"))
        assert page.texts("#up") == ["1"]
        assert any("SIGKILL" in why or "broke" in why for why in page.texts(".lane .why"))
        page.fits("during")
        cluster.until_up(2)
        page.until(lambda: page.texts(".lane h3 b") == lanes)
        assert any("lost" in text for text in page.texts(".lane h3")), "and that it was lost is told"
        page.fits("after")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not page.browser.get_log("browser")
    cluster.until_clean()
