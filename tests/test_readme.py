"""README tells the truth: its code runs, its commands exist, the files it cites are there."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {p.name: p.read_text() for p in ROOT.glob("*.md")}


def test_the_twelve_lines_of_python_run(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  our own page
    printed = capsys.readouterr().out.splitlines()
    assert "bytes of KV a request" in printed[0]
    assert len(printed) == 3


def test_every_module_a_page_runs_exists():
    for page, text in PAGES.items():
        for module in re.findall(r"python -m ([\w.]+)", text):
            assert importlib.util.find_spec(module), f"{page} runs {module}"


def test_every_make_target_a_page_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page, text in PAGES.items():
        for target in re.findall(r"(?:`|^    )make ([a-z-]+)", text, flags=re.M):
            assert target in targets, f"{page} names make {target}"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_file_a_page_cites_is_there(page):
    for path in re.findall(
        r"`((?:results|configs|tests|mixattn|serving|train|pallas_kernels)/[\w./-]+)`", PAGES[page]
    ):
        assert (ROOT / path).exists() or list(ROOT.glob(path + ".*")), f"{page} cites {path}"
