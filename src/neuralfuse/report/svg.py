"""Charts as inline SVG: drawn by matplotlib, coloured by the page, so that they suit light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"  # stand for the page's colours
SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506")
_LARGER = 1.45  # pixels a point, so that text of 9 points is as large as that of captions
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper",
    **{colour: f"series-{place + 1}" for place, colour in enumerate(SERIES)},
}  # fmt: skip


@contextmanager
def chart(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[Chart]:
    """Give a figure of a size in inches to draw into; its SVG is `Chart.svg` afterwards."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "neuralfuse", "font.family": "sans-serif", "font.size": 9,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.facecolor": "none", "figure.facecolor": "none",
        "axes.spines.top": False, "axes.spines.right": False, "grid.color": GRID, "grid.linewidth": 0.8,
        "axes.axisbelow": True,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options
        )  # fmt: skip
        made = Chart(figure, axes)
        try:
            yield made
            made.render()
        finally:
            plt.close(figure)


class Chart:
    """A figure, its axes (rows, columns), and once it is rendered, its SVG."""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure, self.axes = figure, axes
        self.svg = ""

    def render(self) -> None:
        """Turn the figure into SVG."""
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        self.svg = file.getvalue()


def inline(svg: str, alt: str) -> str:
    """Return an SVG for the inside of a page: no ids but those that it needs, its colours the page's, a name."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', body))
    kept = {one or other for one, other in used}
    body = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in kept else "", body)
    prefix = f"f{abs(hash_of(body)) % 10**8}-"
    for name in kept:
        body = body.replace(f'id="{name}"', f'id="{prefix}{name}"')
        body = body.replace(f"url(#{name})", f"url(#{prefix}{name})").replace(
            f'href="#{name}"', f'href="#{prefix}{name}"'
        )
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    size = re.search(r'<svg[^>]*? width="([\d.]+)pt"', body)
    width = f"{float(size[1]) * _LARGER:.0f}px" if size else "50rem"
    natural = f' style="width: {width}"'  # a phone scrolls it, so that its text stays as large as it is
    body = re.sub(r'(<svg[^>]*?) width="[^"]+"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]+"', r"\1", body, count=1)
    body = re.sub(r"font: [^;\"]*?([\d.]+)px[^;\"]*", r"font-size: \1px", body)
    label = html.escape(alt, quote=True)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"{natural}', 1).strip()


def hash_of(text: str) -> int:
    """Return a number that depends on a text alone."""
    import hashlib  # noqa: PLC0415

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
