"""The platform in a real browser: Debian's Chromium, headless, through selenium."""

import base64
import json
import os
import re
import time
from pathlib import Path

import pytest

from mixattn.evals.arena.platform.battle import WINNERS
from tests.browser import NEEDS_CHROMIUM, chromium
from tests.mixattn.evals.arena.platform.conftest import MODELS, Visitor

pytestmark = NEEDS_CHROMIUM
PHONE, DESK = (420, 844), (1200, 900)
NAMES = re.compile("zebrafish|quokka", re.I)
# Where to keep pictures; without it none are kept.
PICTURES = os.environ.get("ARENA_PICTURES")


@pytest.fixture(scope="module")
def browser():
    driver = chromium(logs=("performance", "browser"))
    driver.set_window_size(*DESK)
    driver.execute_cdp_cmd("Network.enable", {"maxTotalBufferSize": 50_000_000})
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, arena):
    browser.delete_all_cookies()
    browser.get(arena.url)
    browser.get_log("performance")
    return Page(browser, arena.url)


class Page:
    """What a person does in the browser."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def ask(self, prompt="What is a word?"):
        self.browser.get(self.url)
        self.one("#prompt").send_keys(prompt)
        self.one("button.main").click()

    def wait(self, holds, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if holds():
                    return
            except Exception:  # the page is being replaced
                time.sleep(0.01)
            time.sleep(0.05)
        raise AssertionError(f"never came: {self.text()}")

    def finished(self):
        self.wait(
            lambda: "/battle/" in self.browser.current_url and not self.all("#live") and self.all("article")
        )

    def text(self):
        return self.one("body").text

    def picture(self, name):
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            whole = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            (Path(PICTURES) / f"{name}.png").write_bytes(base64.b64decode(whole["data"]))

    def received(self):
        """(address, headers and body) of every response since the last call."""
        found = []
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append((message["params"]["request"]["url"], ""))
            if message["method"] == "Network.eventSourceMessageReceived":
                found.append((self.url, message["params"]["data"]))
            if message["method"] == "Network.responseReceived":
                response = message["params"]["response"]
                body = ""
                try:
                    got = self.browser.execute_cdp_cmd(
                        "Network.getResponseBody", {"requestId": message["params"]["requestId"]}
                    )
                    body = base64.b64decode(got["body"]).decode() if got["base64Encoded"] else got["body"]
                except Exception:
                    body = ""  # a redirect or a stream, whose events are kept above
                found.append((response["url"], json.dumps(response["headers"]) + body))
        return found


def test_battle_vote_reveal_leaderboard(browser, serve):
    page = Page(browser, serve(MODELS.replace("0.01", "0.15")).url)  # slow enough to be seen streaming
    browser.get_log("performance")
    page.ask("<script>document.title = 'broken in'</script> What is a word?")
    page.wait(lambda: "word" in page.one("article .text").text and len(page.all("#live")) == 1)
    page.picture("battle-streaming")
    page.finished()
    page.picture("battle")
    before = page.received()
    assert sum("word" in body for _, body in before) >= 1  # the search reads bodies
    assert any(body.startswith("[") for _, body in before)  # and streamed pieces
    assert not [body for _, body in before if NAMES.search(body)]
    assert "Zebrafish" not in page.browser.page_source
    assert "<script>document.title" in page.text()
    page.one("[data-key='2']").click()
    page.wait(lambda: "B is better" in page.one("[role=status]").text)
    assert NAMES.search(page.text())
    assert "quokka <b>9y</b>" in page.text()
    page.picture("reveal")
    page.browser.get(f"{page.url}/leaderboard")
    page.wait(lambda: NAMES.search(page.text()))
    assert "broken in" not in page.browser.title
    hosts = {
        url.split("/")[2] for url, _ in [*before, *page.received()] if url.startswith(("http:", "https:"))
    }
    assert hosts == {page.url.split("/")[2]}
    problems = [line for line in page.browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not problems


def test_a_reload_in_the_middle_loses_nothing(page):
    page.ask()
    page.wait(lambda: "The" in page.text() or "Another" in page.text())
    page.browser.refresh()
    page.finished()
    texts = sorted(element.text for element in page.all("article .text"))
    assert texts[0] == "Another answer, {words} and that is all."
    assert texts[1].startswith("The left or the right")
    assert texts[1].endswith("</script> and ends.")


def test_keys_vote_and_the_second_tab_is_told_of_the_first_vote(page):
    page.ask()
    page.finished()
    first = page.browser.current_window_handle
    address = page.browser.current_url
    page.browser.switch_to.new_window("tab")
    page.browser.get(address)
    page.finished()
    second = page.browser.current_window_handle
    page.browser.switch_to.window(first)
    page.one("body").send_keys("3")
    page.wait(lambda: "Vote: tie" in page.text())
    page.browser.switch_to.window(second)
    page.one("[data-key='1']").click()
    page.wait(lambda: "The first vote stands" in page.text())
    assert "Vote: tie" in page.text()
    page.browser.close()
    page.browser.switch_to.window(first)


def test_digits_in_the_message_box_do_not_vote(page):
    page.ask()
    page.finished()
    page.one("#prompt").send_keys("1234")
    assert not page.all("[role=status]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [PHONE, DESK])
def test_pages_fit_their_width_in_light_and_dark(page, scheme, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    visitor = Visitor(page.url)
    for winner in WINNERS[:3]:
        visitor.vote(visitor.battle(), winner)
    label = f"{scheme}-{'phone' if width < 500 else 'desk'}"
    try:
        page.ask("A rather long question " * 8)
        page.finished()
        for name, address in (
            ("battle", page.browser.current_url),
            ("leaderboard", f"{page.url}/leaderboard"),
            ("history", f"{page.url}/history"),
            ("home", f"{page.url}/side-by-side"),
        ):
            page.browser.get(address)
            overflow = page.browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, f"{name} is {overflow} pixels too wide"
            page.picture(f"{name}-{label}")
        ink, paper = (
            page.browser.execute_script(f"return getComputedStyle(document.body).{name}")
            for name in ("color", "backgroundColor")
        )
        light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
        assert (light[0] < light[1]) == (scheme == "light")
        named = page.browser.execute_script(
            "return [...document.querySelectorAll('button, textarea, select, input:not([type=hidden])')]"
            ".every(e => e.textContent.trim() || e.labels?.length)"
        )
        assert named  # every control has a name that a screen reader says
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_browser_does_the_proof_of_work_and_writes_answers_anew(browser, serve):
    page = Page(browser, serve(MODELS, "--work_bits=8").url)
    page.ask()
    page.finished()
    page.one("form[action$='/again'] button").click()
    page.finished()
    page.one("[data-key='1']").click()
    page.wait(lambda: "A is better" in page.one("[role=status]").text)
