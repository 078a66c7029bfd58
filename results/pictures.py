"""Make pictures in docs/images/ from the records in this folder: python results/pictures.py (needs Chromium)."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

from neuralfuse.compare.best import Difference
from neuralfuse.report.page import Report

RESULTS = Path(__file__).parent
IMAGES = RESULTS.parent / "docs" / "images"
COMPARISONS = {"report": ("gtsrb-vgg11-cpu-reference", "reference"), "flips": ("gtsrb-vgg11-cpu-flip", "flip"),
               "longer": ("gtsrb-vgg11-ten-times-longer-reference", "reference")}  # fmt: skip
COUNTS = {"unets+calibrate:images=10": 10, "unets+calibrate:images=100": 100, "unets+calibrate": 1000,
          "unets+calibrate:images=10000": 10_000}  # fmt: skip
BESIDE = {"reestimate": ("BatchNorm, re-estimated on the chip", "#b3432b"), "none": ("no protection", "#6b6f76")}


def comparisons() -> None:
    """All methods of each comparison, as a report draws them."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 920, "height": 900}, device_scale_factor=1.5)
        for name, (record, faults) in COMPARISONS.items():
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(RESULTS / "comparisons" / f"{record}.json", folder)
                page = Path(folder) / "report.html"
                Report.of(Path(folder), "Measured").write(page)
                opened.goto(page.as_uri())
                figure = opened.locator("figure", has=opened.get_by_role("heading", name=f"All methods, {faults}"))
                figure.screenshot(path=IMAGES / f"{name}.png")
        browser.close()


def one_chip() -> None:
    """What a module for one chip is worth, against the number of images that it is fitted to."""
    records = [json.loads(path.read_text()) for path in sorted((RESULTS / "comparisons").glob("one-chip-*.json"))]
    grid = [[(record, *of) for of in _settings(record)] for record in records]
    rows, columns = len(grid), max(map(len, grid))
    figure = Figure(figsize=(3.6 * columns, 0.5 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for line, panels in zip(axes, grid, strict=True):
        for axis, (record, faults, ber) in zip(line, panels, strict=True):
            _panel(axis, record, faults, ber)
        line[0].set_ylabel("points over the module\nfor all chips", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("unlabelled images that the chip is asked about", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    figure.savefig(IMAGES / "one-chip.png", dpi=130)


def _panel(axis: Any, record: dict[str, Any], faults: str, ber: float) -> None:
    rows = {row["method"]: row for row in record["rows"] if (row["faults"], row["ber"]) == (faults, ber)}
    found = {count: Difference.of(rows[name], rows["unets"]) for name, count in COUNTS.items()}
    points = [one.points for one in found.values()]
    away = [one.points - one.interval[0] for one in found.values()]
    axis.axhline(0, color="black", linewidth=1)
    axis.errorbar(list(found), points, yerr=away, color="#1f6f8b", marker="o", capsize=3, label="made for the chip")
    for name, (label, colour) in BESIDE.items():
        axis.axhline(Difference.of(rows[name], rows["unets"]).points, color=colour, linestyle="--", label=label)
    axis.set_xscale("log")
    axis.set_xticks(list(found), [f"{count:,}" for count in found])
    network, data = record["config"]["base"].partition("-")[0], record["data"]["name"]
    axis.set_title(f"{network} on {data}, {100 * ber:g}% {faults}", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)


def _settings(record: dict[str, Any]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((row["faults"], row["ber"]) for row in record["rows"]))


if __name__ == "__main__":
    comparisons()
    one_chip()
