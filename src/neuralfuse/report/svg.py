"""What charts are drawn on: matplotlib figures whose colours are roles, for a page (inline SVG) or a file (PNG)."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from neuralfuse.files import write_atomically

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506")
"""The roles of colours. Each is written as a colour that stands for it until a page or a file gives it its own."""
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper",
    **{colour: f"series-{place + 1}" for place, colour in enumerate(SERIES)},
}  # fmt: skip
LIGHT = {
    "paper": "#ffffff", "ink": "#1a1d21", "muted": "#565d66", "grid": "#d9dde3",
    "series-1": "#1f6f8b", "series-2": "#b3432b", "series-3": "#6a5acd",
    "series-4": "#2e7d32", "series-5": "#a15c00", "series-6": "#9c2a76",
}  # fmt: skip
"""The colours on white paper, by the names that a page's style sheet has for the roles."""
FOR_A_PAGE = {role: role for role in _VARIABLES}
FOR_A_FILE = {role: LIGHT[name] for role, name in _VARIABLES.items()}
_LARGER = 1.45  # pixels per point, so that text of 9 points is as large as that of captions
_DPI = 150  # of files


@contextmanager
def chart(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    *,
    colours: Mapping[str, str] = FOR_A_PAGE,
    **options: Any,
) -> Iterator[Chart]:
    """Give a chart to draw on.

    Args:
        width: In inches.
        height: In inches.
        rows: Rows of axes.
        columns: Columns of axes.
        colours: The colour of each role.
        options: More arguments of matplotlib's `Figure.subplots`.
    """
    ink, muted = colours[INK], colours[MUTED]
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "neuralfuse", "font.family": "sans-serif", "font.size": 9,
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": muted, "xtick.color": muted, "ytick.color": muted,
        "xtick.labelcolor": ink, "ytick.labelcolor": ink, "grid.color": colours[GRID], "grid.linewidth": 0.8,
        "axes.facecolor": "none", "figure.facecolor": "none" if colours is FOR_A_PAGE else colours[PAPER],
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "text.parse_math": False,
        "legend.frameon": False, "legend.fontsize": 8,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield Chart(figure, figure.subplots(rows, columns, squeeze=False, **options), colours, style)


class Chart:
    """A figure, its axes (rows, columns), and the colour of each role."""

    def __init__(self, figure: Figure, axes: Any, colours: Mapping[str, str], style: Any) -> None:
        self.figure, self.axes, self.colours = figure, axes, colours
        self._style = style

    @property
    def svg(self) -> str:
        """The figure as SVG."""
        file = io.StringIO()
        with rc_context(self._style):
            self.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write the figure to a file, whose suffix decides the format.

        Raises:
            OutputError: the file cannot be written.
        """
        with rc_context(self._style):
            write_atomically(path, partial(self.figure.savefig, dpi=_DPI))


def inline(svg: str, alt: str) -> str:
    """Return an SVG for the inside of a page.

    The result keeps only the ids that it refers to, takes its colours from the page, and has a name.

    Args:
        svg: From `Chart.svg`.
        alt: What the picture shows, for those who cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', body))
    kept = {one or other for one, other in used}
    body = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in kept else "", body)
    prefix = f"f{_number_of(body)}-"  # ids must differ between the pictures of a page
    for name in kept:
        body = body.replace(f'id="{name}"', f'id="{prefix}{name}"')
        body = body.replace(f"url(#{name})", f"url(#{prefix}{name})").replace(
            f'href="#{name}"', f'href="#{prefix}{name}"'
        )
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    size = re.search(r'<svg[^>]*? width="([\d.]+)pt"', body)
    width = f"{float(size[1]) * _LARGER:.0f}px" if size else "50rem"
    natural = f' style="width: {width}"'  # a narrow screen scrolls the picture, so that its text stays readable
    body = re.sub(r'(<svg[^>]*?) width="[^"]+"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]+"', r"\1", body, count=1)
    body = re.sub(r"font: [^;\"]*?([\d.]+)px[^;\"]*", r"font-size: \1px", body)
    label = html.escape(alt, quote=True)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"{natural}', 1).strip()


def _number_of(text: str) -> int:
    """Return a number of up to eight digits that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 10**8
