"""Pictures of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralfuse.files import write_atomically

PLAIN, FUSED = "#b3432b", "#1f6f8b"  # apart in hue and in lightness


def plot_accuracy(records: Sequence[Mapping[str, Any]], path: Path, *, title: str, trained_at: float) -> None:
    """Draw accuracy against bit-error rate, with and without NeuralFuse; chips as a band from 10th to 90th percentile.

    Args:
        records: Evaluation records of one base model and one module at several rates.
        path: Where the picture goes; its suffix decides the format.
        title: Its heading.
        trained_at: The rate at which the module was trained, marked.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import numpy as np  # noqa: PLC0415
    from matplotlib import pyplot as plt  # noqa: PLC0415
    from matplotlib.ticker import PercentFormatter  # noqa: PLC0415

    ordered = sorted(records, key=lambda record: float(record["ber"]))
    bers = [record["ber"] for record in ordered]
    figure, axes = plt.subplots(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    for key, color, name in (("pa_nf", FUSED, "with\nNeuralFuse"), ("pa", PLAIN, "without")):
        chips = np.array([[chip[key] for chip in record["per_chip"]] for record in ordered])
        low, high = np.percentile(chips, [10, 90], axis=1)
        axes.fill_between(bers, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(bers, chips.mean(axis=1), color=color, marker="o", markersize=4, linewidth=2)
        clean = ordered[0]["ca" if key == "pa" else "ca_nf"]
        axes.axhline(clean, color=color, linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(
            name, (bers[-1], chips[-1].mean()), xytext=(8, 0), textcoords="offset points", color=color, weight="bold",
            va="center", annotation_clip=False,
        )  # fmt: skip
    axes.axvline(trained_at, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
    axes.annotate(
        "trained at", (trained_at, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", color="#666666", fontsize=8,
    )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=11, weight="bold")
    axes.set_xlabel(f"rate of faulty memory cells ({ordered[0]['ber_kind']}); dotted: without bit errors", fontsize=9)
    axes.set_ylabel(f"accuracy (%)\n{ordered[0]['chips']} unseen chips, band: 10-90% of them", fontsize=9)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlim(bers[0], bers[-1])
    axes.set_xticks(bers)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    write_atomically(path, figure.savefig)
    plt.close(figure)
