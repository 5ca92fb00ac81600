"""Debian's Chromium, headless, through selenium, for tests with `pytestmark = NEEDS_CHROMIUM`."""

import shutil
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDS_CHROMIUM = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver (apt-get install)"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking")


def chromium(*flags: str, logs: tuple[str, ...] = ("browser",)) -> Any:
    """A running browser, to be ended by `quit`; `logs`: what `get_log` can tell."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives the browser: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
