"""Chromium without a window, and servers for it to look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.browser import fake as fakes

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"wide": (1_440, 900), "narrow": (360, 740)}
#: What is waited for comes at once on a quiet machine; not every machine is.
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)
#: What an operator would stumble over; axe calls the rest minor or moderate.
GRAVE = {"serious", "critical"}


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path."""
    found = os.environ.get("WEIR_TEST_CHROMIUM") or shutil.which("chromium")
    if not found:
        pytest.skip("no Chromium: scripts/browser installs it")
    return found


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots go, for a person to look at."""
    folder = Path(os.environ.get("WEIR_TEST_PICTURES", ".weir/pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Eyes:
    """A browser, and what went wrong in its pages."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.complaints: list[str] = []

    async def page(self, size: str = "wide", scheme: Any = "light") -> Page:
        """A page of this size; what it complains of is kept."""
        width, height = SIZES[size]
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        page = await context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        page.on("console", self._heard)
        return page

    def _heard(self, message: Any) -> None:
        # That a server does not answer is said here too, and is for the page to show.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)


@pytest.fixture
async def eyes(chromium: str) -> AsyncIterator[Eyes]:
    """A browser of its own for each test; no page may have raised, nor broken the policy."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        made = Eyes(browser)
        yield made
        await browser.close()
    assert [] == made.complaints


@pytest.fixture
def fake() -> Iterator[fakes.Fake]:
    """A server with something to show in every view."""
    with fakes.served(fakes.full()) as server:
        yield server


async def violations(page: Page) -> list[str]:
    """What axe finds grave in a page as it is shown."""
    # From outside the page: its policy lets no script in.
    found = await Axe().run(page)
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes'][:5]]}"
        for one in found.response["violations"]
        if one["impact"] in GRAVE
    ]


async def stand_still(page: Page) -> None:
    """Stop the page's clock, however long the test takes; ``page.clock`` was installed before."""
    await page.clock.pause_at(await page.evaluate("Date.now()") / 1_000 + 10.0)
