"""Makes the two pictures of the README from the demonstration's run: `make pictures` (needs chromium and poppler-utils)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent


def dashboard(run: Path) -> None:
    """The first screen of the overview."""
    command = [sys.executable, "-m", "dashboards", str(run), "--port", "8601", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        try:
            link = server.stdout.readline().split()[1] if server.stdout else ""
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.goto(link)
            page.get_by_text("Scorecard").first.wait_for()
            page.wait_for_timeout(1500)
            page.screenshot(path=HERE / "dashboard.png")
            browser.close()
        finally:
            server.terminate()


def report(pdf: Path) -> None:
    """The page with the verdict."""
    pages = subprocess.run(["pdftotext", "-layout", str(pdf), "-"], check=True, capture_output=True, text=True).stdout
    page = next(
        number
        for number, words in enumerate(pages.split("\f"), 1)
        if "What this report does not say" in words and number > 2
    )
    words = ["pdftoppm", "-r", "70", "-f", str(page), "-singlefile", "-png", str(pdf), str(HERE / "report")]
    subprocess.run(words, check=True)


if __name__ == "__main__":
    dashboard(Path(sys.argv[1]))
    report(Path(sys.argv[2]))
