"""An evaluation record as a few lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def result_lines(values: Mapping[str, Any]) -> list[str]:
    """Return lines with CA and PA and, with a NeuralFuse, CA(NF), PA(NF) and RP, from a record's values."""
    lines = [
        f"CA      {values['ca']:6.2f}%   without bit errors (floating point {values['ca_float']:.2f}%)",
        f"PA      {values['pa']:6.2f}%   {_spread(values['pa_sd'])}",
    ]
    if values["rp"] is not None:
        interval = values["rp_ci95"]
        spread = "" if interval is None else f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f}"
        lines += [
            f"CA(NF)  {values['ca_nf']:6.2f}%   behind NeuralFuse, without bit errors",
            f"PA(NF)  {values['pa_nf']:6.2f}%   {_spread(values['pa_nf_sd'])}",
            f"RP      {values['rp']:+6.2f}    points recovered{spread}",
        ]
    return lines


def evaluation_text(record: Mapping[str, Any]) -> str:
    """Return an evaluation record as text: the faults, the results, the paper's row and the target, if any."""
    published = record["config"].get("chips", {}).get("published", False)
    kind = "published" if published else "unseen"
    if record["ber_kind"] in ("map", "saved"):
        synthetic = record["config"]["faults"].get("map", {}).get("synthetic")
        kind = {True: "placements on a synthetic", False: "placements on a measured", None: "saved"}[synthetic]
    counted = "bits wrong where 0 and 1 are even" if record["ber_kind"] == "asymmetric" else "cells faulty"
    lost = sum(chip.get("not_finite", 0) for chip in record["per_chip"]) / record["chips"]
    lines = [
        *_operating_point(record["config"].get("operating_point")),
        f"{100 * record['ber']:.4g}% of the {counted} ({record['ber_kind']}): {record['changed_bits']:.3%} of the "
        f"stored bits changed; {record['chips']} {kind} chip{'' if record['chips'] == 1 or 'on a' in kind else 's'}",
        *([f"{lost:.4g} weights per chip read as infinity or NaN"] if lost else []),
        *result_lines(record),
        *_paper(record["published"]),
        *_target(record),
    ]
    return "\n".join(lines)


def _paper(row: Mapping[str, Any] | None) -> list[str]:
    """Return the paper's row for the same measurement, as at most one line."""
    if row is None:
        return []
    printed = f"CA {row['ca']}, PA {row['pa']} +- {row['pa_std']}"
    if "pa_nf" in row:
        printed += f", CA(NF) {row['ca_nf']}, PA(NF) {row['pa_nf']} +- {row['pa_nf_std']}, RP {row['rp']}"
    doubt = "" if row["misprint"] is None else f" (misprint: {row['misprint']})"
    return [f"the paper, {row['table'].replace('table', 'Table ')}: {printed}{doubt}"]


def _target(record: Mapping[str, Any]) -> list[str]:
    """Return the number of chips that reach the target, as at most one line."""
    judged = record.get("target")
    if judged is None:
        return []
    all_of_them = f", so at least {judged['share_at_least']:.1%} of all chips do ({judged['confidence']:.0%} sure)"
    return [
        f"{judged['passed']} of {record['chips']} chips reach {judged['accuracy']:g}%"
        f"{'' if judged['exact'] else all_of_them}; the worst has {judged['worst']:.2f}%"
    ]


def _operating_point(point: Mapping[str, Any] | None) -> list[str]:
    """Return the voltage that gave the rate, as at most one line."""
    if point is None or point["curve"] is None:
        return []
    curve = point["curve"]
    return [
        f"at {point['voltage']:g} {curve['unit']}, by {'a model' if curve['model'] else 'a curve'}: {curve['source']}"
    ]


def _spread(sd: float | None) -> str:
    return "on one chip" if sd is None else f"+- {sd:.2f} from chip to chip"
