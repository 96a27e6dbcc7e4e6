"""The dashboard in a real browser: every page, no error, no request to anybody else."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.serving import Served, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="needs playwright: pip install 'xvision[dev]'"
    ),
]
WAIT = 60_000
STATE = """() => {
  const state = document.querySelector("[data-testid=stApp]").dataset.testScriptState;
  const loaded = [...document.images].every(image => image.complete && image.naturalWidth);
  const size = document.querySelectorAll("[data-testid=stMain] *").length;
  return `${state === "notRunning" && loaded ? "done" : "busy"} ${size}`;
}"""


@dataclass
class Watched:
    """A browser page with all that went wrong on it."""

    page: Any
    served: Served
    wrong: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        self.page.goto(self.served.base + path)
        self.settled()

    def settled(self) -> None:
        """Waits until the script has ended, every image is there and nothing is added any more.

        Asked from outside, because the page's own policy forbids a browser to poll an expression.
        """
        self.page.wait_for_selector(".xv h1", timeout=WAIT)
        before = ""
        for _ in range(WAIT // 250):
            now = str(self.page.evaluate(STATE))
            if now == before and now.startswith("done"):
                break
            before = now
            self.page.wait_for_timeout(250)
        else:
            self.wrong.append(f"never ready: {before}")
        assert self.page.locator("[data-testid=stException]").count() == 0


@pytest.fixture(scope="module")
def watched(runs: dict[str, Path]) -> Iterator[Watched]:
    """The run in which every label is hostile: what opens for it opens for the others."""
    from playwright.sync_api import sync_playwright

    with serving(runs["hostile"]) as served, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        )
        found = Watched(browser.new_page(viewport={"width": 1400, "height": 1000}), served)
        _watch(found)
        found.page.goto(served.link)
        found.settled()
        yield found
        browser.close()


def _watch(found: Watched) -> None:
    def told(message: Any) -> None:
        if message.type == "error" and not _probe(message.location.get("url", "")):
            found.wrong.append(f"console: {message.text} {message.location}")

    def requested(request: Any) -> None:
        if not request.url.startswith((found.served.base, "data:", "blob:")):
            found.wrong.append(f"outside: {request.url}")

    found.page.on("console", told)
    found.page.on("pageerror", lambda error: found.wrong.append(f"page: {error}"))
    found.page.on("request", requested)


def _probe(url: str) -> bool:
    """Streamlit looks for its server below the page's own path first, which is answered with 404."""
    return "/_stcore/" in url and not url.split("/", 3)[3].startswith("_stcore/")


def test_every_page_opens_without_error_and_asks_nobody_else(watched: Watched) -> None:
    """The menu and the page both show the literal title, so no title was taken for Markdown or HTML."""
    links = watched.page.locator("[data-testid=stSidebarNavLink]")
    names = watched.page.locator("[data-testid=stSidebarNavLink] p").all_inner_texts()
    assert len(names) == 8
    for place, name in enumerate(names):
        links.nth(place).click()
        if place:
            watched.page.get_by_role("heading", level=1, name=name, exact=True).wait_for(timeout=WAIT)
        watched.settled()
        assert watched.page.locator("[data-testid=stImage] img:not([alt])").count() == 0
    assert watched.wrong == []


def test_a_link_to_a_case_opens_that_case(watched: Watched) -> None:
    watched.open("/cases?case=case-2")
    watched.page.get_by_role("heading", name="case-2").wait_for(timeout=WAIT)
    watched.page.get_by_role("img", name="map of case case-2").wait_for(timeout=WAIT)
    assert watched.page.url.endswith("/cases?case=case-2")
    assert watched.wrong == []


def test_from_the_verdict_to_the_pictures_of_a_case_in_three_clicks(watched: Watched) -> None:
    watched.open("/")
    watched.page.get_by_role("link", name="attribution").first.click()
    watched.page.get_by_role("link", name="Open case").nth(1).click()
    watched.page.get_by_role("heading", name="case-2").wait_for(timeout=WAIT)
    watched.page.go_back()
    watched.page.get_by_role("link", name="Open case").first.wait_for(timeout=WAIT)
    assert watched.wrong == []


def test_nothing_is_cut_off_on_a_telephone(watched: Watched) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 800})
    watched.open("/")
    too_wide = watched.page.evaluate(
        "[...document.querySelectorAll('[data-testid=stMain] .xv')].filter(e => e.getBoundingClientRect().right > 391).length"
    )
    watched.page.set_viewport_size({"width": 1400, "height": 1000})
    assert too_wide == 0
