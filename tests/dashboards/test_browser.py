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


RANGES = """() => {
  const layout = document.querySelector(".st-key-panel-viewer .js-plotly-plot")._fullLayout;
  const places = Object.keys(layout).filter(name => /^xaxis[0-9]*$/.test(name)).map(name => name.slice(5));
  return places.map(place => [...layout[`xaxis${place}`].range, ...layout[`yaxis${place}`].range]);
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
    watched.page.get_by_role("img", name="map of case case-2; not tested").wait_for(timeout=WAIT)
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


def test_from_the_first_page_to_a_stamped_map_in_two_clicks(watched: Watched) -> None:
    watched.open("/")
    watched.page.locator(".st-key-panel-maps").get_by_role("link", name="Maps of single cases").click()
    watched.page.get_by_role("img", name="fails randomisation: do not rely on this map").first.wait_for(timeout=WAIT)
    watched.settled()
    assert watched.wrong == []


def ranges(watched: Watched) -> list[list[float]]:
    """Where each picture of the viewer is zoomed to."""
    found: list[list[float]] = watched.page.evaluate(RANGES)
    return found


def test_the_pictures_of_the_viewer_are_zoomed_as_one_and_stay_so(watched: Watched) -> None:
    watched.open("/cases?case=case-1")
    page = watched.page
    page.locator(".st-key-panel-viewer .nsewdrag").first.wait_for(timeout=WAIT)
    page.get_by_role("combobox", name="Maps").click()
    page.get_by_role("option").filter(has_text="saliency").click()
    page.keyboard.press("Escape")
    page.locator(".st-key-panel-viewer .nsewdrag").nth(2).wait_for(timeout=WAIT)
    watched.settled()
    whole = [-0.5, 15.5, 15.5, -0.5]
    assert ranges(watched) == [whole] * 3
    second = page.locator(".st-key-panel-viewer .nsewdrag").nth(1)
    second.scroll_into_view_if_needed()
    second.hover()
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(1500)
    zoomed = ranges(watched)
    assert zoomed[0] == zoomed[1] == zoomed[2]
    assert zoomed[0][0] > 0
    assert zoomed[0][1] < 15
    opacity = page.get_by_role("slider", name="Opacity of the maps (%)")
    opacity.focus()
    opacity.press("ArrowLeft")
    page.wait_for_timeout(1500)
    watched.settled()
    assert opacity.input_value() == "70"
    assert [[round(value, 2) for value in found] for found in ranges(watched)] == [[round(v, 2) for v in zoomed[0]]] * 3
    page.locator(".st-key-panel-viewer .nsewdrag").first.dblclick()
    page.wait_for_timeout(1000)
    left, right, bottom, top = ranges(watched)[0]
    assert left <= -0.5 <= 15.5 <= right
    assert top <= -0.5 < 15.5 <= bottom, "rows still count downwards"
    assert watched.wrong == []


def test_nothing_is_cut_off_on_a_telephone(watched: Watched) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 800})
    watched.open("/")
    too_wide = watched.page.evaluate(
        "[...document.querySelectorAll('[data-testid=stMain] .xv')].filter(e => e.getBoundingClientRect().right > 391).length"
    )
    watched.page.set_viewport_size({"width": 1400, "height": 1000})
    assert too_wide == 0
