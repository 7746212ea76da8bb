"""A headless browser for pages that open from disk: ``make test-browser``; elsewhere skipped where one is missing.

Debian: apt install chromium; and pip install 'collapsar[browser]'.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs chromium and playwright (make test-browser)")


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium, for one module at a time: while playwright runs, its event loop is in the way of others."""
    path = next((found for found in map(shutil.which, NAMES) if found), None)
    if find_spec("playwright") is None:
        _absent(request, "playwright is not installed: pip install 'collapsar[browser]'")
    if path is None:
        _absent(request, f"no browser is installed ({', '.join(NAMES)}); on Debian: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


def _absent(request: pytest.FixtureRequest, message: str) -> None:
    """Asked for by name, these tests fail at once with one message; otherwise they are skipped."""
    if request.config.option.markexpr.strip() == "browser":
        pytest.exit(f"browser tests: {message}", returncode=1)
    pytest.skip(message)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file; when the test is over, no page may have logged an error or asked for anything but itself."""
    contexts, complaints = [], []

    def opened(file: Path, fragment: str = "", width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        url = file.as_uri()

        def asked(request: Any) -> None:
            if not request.url.startswith((url, "data:", "blob:")):
                complaints.append(f"request: {request.url}")

        page.on("request", asked)
        page.goto(url + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
