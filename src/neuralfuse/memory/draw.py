"""Pictures of faults: the array as an image, and a histogram of weight changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from neuralfuse.faults import Chip, FaultMap
from neuralfuse.files import write_atomically
from neuralfuse.memory.audit import on_array, title
from neuralfuse.memory.weights import WeightMemory

_COLOURS = ["#f4f4f2", "#1f5fa8", "#d1491b", "#2b8a3e"]
_NAMES = ["good", "reads 0", "reads 1", "inverts"]
_BANKS = _VOLTAGES = 8  # at most so many are drawn


def draw_map(fault_map: FaultMap, path: Path, *, voltage: float | None = None) -> None:
    """Draw a fault map: one panel per voltage, with the banks below each other.

    Args:
        fault_map: The map.
        path: PNG, SVG or PDF file.
        voltage: The voltage to draw. None draws up to eight voltages.
    """
    count = len(fault_map.cells)
    chosen = range(0, count, -(-count // _VOLTAGES)) if voltage is None else [fault_map.index(voltage)]
    figure = Figure(figsize=(8, 0.8 + 1.9 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
    for axis, place in zip(axes, chosen, strict=True):
        at = f"{fault_map.voltages[place]:g} {fault_map.unit}: " if fault_map.voltages else ""
        rate = np.count_nonzero(fault_map.cells[place]) / fault_map.cells[place].size
        _array(axis, fault_map.cells[place], f"{at}{rate:.3%} of the cells faulty")
    kind = "synthetic" if fault_map.synthetic else "measured"
    figure.suptitle(_short(f"{kind}: {fault_map.source}"), fontsize=10)
    _legend(figure, fault_map.cells)
    write_atomically(path, lambda file: figure.savefig(file, dpi=150))


def draw_chip(memory: WeightMemory, chip: Chip, path: Path) -> None:
    """Draw a chip under a model: the array's first banks, and the histogram of weight changes.

    Args:
        memory: The model's weights.
        chip: The chip.
        path: PNG, SVG or PDF file.
    """
    shown = on_array(memory, chip, _BANKS)
    reading = memory.read(chip)
    change = (reading.values - memory.values[reading.index]).cpu().numpy()
    finite = change[np.isfinite(change)]
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[1.1, 1])
    banks, rows, columns = shown.cells.shape[1:]
    _array(upper, shown.cells[0], f"the first {banks} bank{'s' * (banks > 1)} of {rows} x {columns} cells")
    if len(finite):
        lower.hist(finite, bins=101, color=_COLOURS[1])
        lower.set_yscale("log")
    lower.set_xlabel("change of a weight")
    lower.set_ylabel("weights")
    share = len(reading.index) / memory.layout.words
    lost = f", {len(change) - len(finite)} not finite" if len(finite) < len(change) else ""
    lower.set_title(f"{share:.2%} of the weights read differently{lost}", fontsize=9)
    lower.grid(axis="y", alpha=0.3)
    lower.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title(chip)}: {chip.faults.ber:.3%} of the cells faulty", fontsize=10)
    _legend(figure, shown.cells)
    write_atomically(path, lambda file: figure.savefig(file, dpi=150))


def _array(axis: Axes, cells: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], title: str) -> None:
    """Draw banks below each other, with a light line between them. Tall banks are transposed."""
    banks = [bank.T if bank.shape[0] > bank.shape[1] else bank for bank in cells[:_BANKS]]
    tall = cells.shape[1] > cells.shape[2]
    line = np.zeros((1, banks[0].shape[1]), np.uint8)
    stack = np.concatenate([part for bank in banks for part in (bank, line)][:-1])
    axis.imshow(stack, cmap=ListedColormap(_COLOURS), vmin=0, vmax=3, aspect="auto", interpolation="nearest")
    axis.set_title(title, fontsize=9)
    by_bank = ", bank by bank" if len(banks) > 1 else ""
    axis.set_xlabel("row" if tall else "column", fontsize=8)
    axis.set_ylabel(("column" if tall else "row") + by_bank, fontsize=8)
    axis.tick_params(labelsize=7)


def _legend(figure: Figure, cells: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    patches = [
        Patch(facecolor=_COLOURS[kind], edgecolor="#888888", linewidth=0.5, label=_NAMES[kind])
        for kind in np.unique(cells)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _short(text: str) -> str:
    short = text if len(text) <= 90 else text[:87] + "..."
    return short.replace("$", r"\$")  # a bare $ would begin a formula
