"""Make the README's picture of a report from the committed record: python results/pictures.py (needs Chromium)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from neuralfuse.report.page import Report

RESULTS = Path(__file__).parent
PICTURE = RESULTS.parent / "docs" / "images" / "report.png"
RECORD, FIGURE = "gtsrb-vgg11-cpu-reference.json", "All methods, reference"


def main() -> None:
    """Make it."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        shutil.copy(RESULTS / "comparisons" / RECORD, folder)
        page = Path(folder) / "report.html"
        Report.of(Path(folder), "Measured").write(page)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 920, "height": 900}, device_scale_factor=1.5)
        opened.goto(page.as_uri())
        opened.locator("figure", has=opened.get_by_role("heading", name=FIGURE)).screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
