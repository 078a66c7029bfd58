"""The pictures of evaluations, plans and the paper's figures: from records to what charts draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from neuralfuse.report.charts import BandsChart, EnergyChart, Level, Panel, Picture, Series, rate_ticks
from neuralfuse.report.svg import INK, MUTED, SERIES

Row = Mapping[str, Any]
WITH, WITHOUT = SERIES[0], SERIES[1]
"""The colours of what is measured with NeuralFuse, and without."""
_MARKS = {"ConvL": "o", "ConvS": "s", "DeConvL": "^", "DeConvS": "v", "UNetL": "D", "UNetS": "P"}
_BELOW = 25  # points below a plan's target that are shown: what is far below decides nothing


def evaluations_picture(records: Sequence[Mapping[str, Any]], *, title: str = "") -> BandsChart:
    """Return accuracy against the rate, with and without NeuralFuse.

    Args:
        records: Evaluations of one base model, and of one NeuralFuse or none, at several rates.
        title: The heading; by default the name of the base model.
    """
    ordered = sorted(records, key=lambda record: float(record["ber"]))
    first, rates = ordered[0], [float(record["ber"]) for record in ordered]
    curves, levels = [], []
    for key, clean, colour, label in (
        ("pa_nf", "ca_nf", WITH, "with\nNeuralFuse"),
        ("pa", "ca", WITHOUT, "without"),
    ):
        if first["per_chip"][0][key] is None:
            continue
        chips = {float(record["ber"]): [chip[key] for chip in record["per_chip"]] for record in ordered}
        curves.append(Series.of_chips(chips, colour=colour, label=label))
        levels.append(Level(accuracy=first[clean], colour=colour))
    counts = {len(record["per_chip"]) for record in ordered}
    chips_text = f"{counts.pop()} unseen chips" if len(counts) == 1 else "the chips"
    base, trained = first["config"]["base"]["name"], _trained_rate(first["config"])
    return BandsChart(
        title=title or f"{base} against the rate",
        caption=f"Lines are means over {chips_text}; bands hold the middle 80% of them; dotted: without bit errors.",
        alt=f"Accuracy of {base} against the rate, from {100 * rates[0]:g} to {100 * rates[-1]:g} percent.",
        x_label=f"rate of faulty memory cells ({first['ber_kind']})",
        panels=[Panel(series=curves, levels=levels)],
        ticks=rate_ticks(rates),
        marked=(trained, "trained at") if trained is not None and rates[0] <= trained <= rates[-1] else None,
    )


def _trained_rate(config: Mapping[str, Any]) -> float | None:
    """Return the rate that the NeuralFuse was trained at; None where it met other faults than those measured."""
    trained, measured = (config["fuse"] or {}).get("fault_model"), config["faults"]
    if not trained or {**trained, "ber": None} != {**measured, "ber": None}:
        return None
    return float(trained["ber"])


def plan_picture(record: Mapping[str, Any]) -> EnergyChart:
    """Return accuracy against energy saved, a curve per protection, with the plan's choice in a ring.

    Args:
        record: From `make_plan`.
    """
    config, options = record["config"], record["options"]
    by, target, curve = config["by"], config["target"], config["hardware"]["curve"]
    colours = {
        "neuralfuse": cycle([SERIES[0], *SERIES[2:]]), "unprotected": cycle([WITHOUT]), "smaller model": cycle([INK]),
        "protected bits": cycle([MUTED]),
    }  # fmt: skip
    marks = {"protected bits": cycle("^v<>"), "smaller model": cycle("sDp*")}
    series = []
    for kind, name in dict.fromkeys((one["kind"], one["name"]) for one in options):
        own = [one for one in options if (one["kind"], one["name"]) == (kind, name)]
        own.sort(key=lambda one: float(one["voltage"]))
        colour, saved = next(colours[kind]), [_saved(one, by) for one in own]
        low, high = zip(*(one["mean_ci95"] or (one["mean"], one["mean"]) for one in own), strict=True)
        label = {"neuralfuse": f"NeuralFuse: {name}", "smaller model": f"{name}, no errors"}.get(kind, name)
        line = {"smaller model": "", "protected bits": "--"}.get(kind, "-")
        mark = next(marks[kind]) if kind in marks else "o"
        means, worst = [one["mean"] for one in own], [one["worst"] for one in own]
        series.append(Series(colour=colour, x=saved, y=worst, mark="_", size=7, faint=True))
        series.append(
            Series(colour=colour, x=saved, y=means, low=low, high=high, label=label, mark=mark, line=line, size=4)
        )
    said = "Nothing measured reaches the target."
    if record["choice"] is not None:
        best = options[record["choice"]]
        series.append(_ring(_saved(best, by), best["mean"], "cheapest that reaches it"))
        said = f"The cheapest that reaches the target is {best['name']} at {best['voltage']:.4g} {curve['unit']}."
    highest, lowest = max(one["mean"] for one in options), min(one["worst"] for one in options)
    what = "memory of the weights" if by == "weights" else "whole inference"
    return EnergyChart(
        title="What each protection saves, at which accuracy",
        caption=f"Marks are means of up to {config['chips']} chips with 95% intervals, dashes the worst chip.",
        alt=f"Accuracy against energy saved, {len(options)} ways to run the model. {said}",
        x_label=f"energy saved, {what} (% of that at {curve['points'][-1][0]:g} {curve['unit']})",
        energy="saved",
        series=series,
        levels=[Level(accuracy=target["accuracy"], label=f"target: {target['text']}")],
        accuracies=(max(lowest - 2, target["accuracy"] - _BELOW, 0), highest + 2),
    )


def _ring(x: float, y: float, label: str) -> Series:
    return Series(colour=INK, x=[x], y=[y], size=14, hollow=True, label=label)


def _saved(option: Mapping[str, Any], by: str) -> float:
    """Return the energy that a way to run saves, in percent."""
    return 100 * (1 - float(option[by]))


def table_picture(record: Mapping[str, Any]) -> Picture | None:
    """Return the picture of one of the paper's tables or figures, as far as it is measured; None if it has none.

    Args:
        record: From `table_record`.
    """
    rows = [row for row in record["rows"] if row["measured"] and "pa_nf" in row["measured"]]
    if rows and "energy_saving" in rows[0]["measured"]:
        return _energy_picture(record, rows)
    if rows and "n" in rows[0]["of"]:
        return _numbers_picture(record, rows)
    return None


def _setting(record: Mapping[str, Any]) -> str:
    return f"Scale {record['config']['scale']}, faults: {record['config']['faults']}."


def _energy_picture(record: Mapping[str, Any], rows: Sequence[Row]) -> EnergyChart:
    """Return accuracy against energy saved: base models are colours, generators are marks."""
    bases = list(dict.fromkeys(row["of"]["base"] for row in rows))
    colours = dict(zip(bases, cycle(SERIES), strict=False))
    plain = {row["of"]["base"]: row["measured"]["pa"] for row in rows}
    caption = f"{_setting(record)} Marks are means over chips with 95% intervals."
    if any(row["measured"]["energy_saving"] < 0 for row in rows):
        caption += " Left of the vertical line nothing is saved."
    return EnergyChart(
        title=str(record["title"]),
        caption=caption,
        alt=f"Accuracy behind NeuralFuse against energy saved, {len(rows)} pairs of base model and generator.",
        x_label="energy of the weights' memory saved (%), at the voltage of 1% bit errors",
        y_label="PA(NF) (%)",
        energy="saved",
        series=[*_generator_key(rows), *_generator_points(rows, colours)],
        levels=[
            Level(accuracy=pa, colour=colours[base], label=f"{base}, PA without" if len(bases) > 1 else "PA without")
            for base, pa in plain.items()
        ],
    )


def _generator_key(rows: Sequence[Row]) -> Iterator[Series]:
    """Yield the entries of the legend for the marks."""
    there = {row["of"]["generator"] for row in rows}
    for generator, mark in _MARKS.items():
        if generator in there:
            yield Series(colour=MUTED, mark=mark, label=generator)
    if any(row["published"] for row in rows):
        doubt = " (* misprint)" if any(row["published"] and row["misprint"] for row in rows) else ""
        yield Series(colour=MUTED, hollow=True, label=f"hollow: the paper{doubt}")


def _generator_points(rows: Sequence[Row], colours: Mapping[str, str]) -> Iterator[Series]:
    """Yield what was published for each row, and what was measured."""
    for row in rows:
        measured, printed = row["measured"], row["published"]
        look: dict[str, Any] = {"colour": colours[row["of"]["base"]], "mark": _MARKS[row["of"]["generator"]], "size": 6}
        if printed is not None:
            note = "*" if row["misprint"] else ""
            x, y = [printed["energy_saving"]], [printed["pa_nf"]]
            yield Series(**look, x=x, y=y, hollow=True, faint=True, note=note)
        low, high = measured["pa_nf_ci95"] or (measured["pa_nf"], measured["pa_nf"])
        yield Series(**look, x=[measured["energy_saving"]], y=[measured["pa_nf"]], low=[low], high=[high])


def _numbers_picture(record: Mapping[str, Any], rows: Sequence[Row]) -> BandsChart:
    """Return accuracy against the number of perturbed models per training step."""
    ordered = sorted(rows, key=lambda row: int(row["of"]["n"]))
    numbers = [row["of"]["n"] for row in ordered]

    def values(key: str) -> list[float]:
        return [row["measured"][key] for row in ordered]

    bounds = [row["measured"]["pa_nf_ci95"] or (row["measured"]["pa_nf"],) * 2 for row in ordered]
    low, high = zip(*bounds, strict=True)
    return BandsChart(
        title=str(record["title"]),
        caption=f"{_setting(record)} PA(NF) is a mean over chips; its band is the 95% interval.",
        alt=f"Accuracy against N, from {numbers[0]} to {numbers[-1]} perturbed models per training step.",
        x_label="perturbed models per training step, N",
        panels=[
            Panel(
                series=[
                    Series(colour=WITH, x=numbers, y=values("pa_nf"), low=low, high=high, label="PA(NF)", line="-"),
                    Series(colour=WITH, x=numbers, y=values("ca_nf"), label="CA(NF)", mark="", line="--"),
                    Series(colour=WITHOUT, x=numbers, y=values("pa"), label="PA without", mark="", line=":"),
                ]
            )
        ],
        ticks={number: str(number) for number in numbers},
        logarithmic=True,
    )
