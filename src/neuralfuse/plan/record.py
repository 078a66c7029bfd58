"""A plan from end to end: measure, choose, check the choice on other chips and images, and write the record."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from neuralfuse.data import DataSet
from neuralfuse.errors import require
from neuralfuse.evaluation import PartialRecord, Target, mean, pareto
from neuralfuse.faults import BitRates, FaultModel
from neuralfuse.files import check_writable, fingerprint, write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets import DeployedBase
from neuralfuse.pipeline import make_evaluation
from neuralfuse.plan.planner import By, Hardware, Kind, Option, Planner, cheapest
from neuralfuse.runs import RunInfo

SCHEMA = "neuralfuse/plan/1"
WITHOUT: Container[Kind] = [kind for kind in get_args(Kind) if kind != "neuralfuse"]


def make_plan(
    base: DeployedBase,
    fuses: Mapping[str, NeuralFuse],
    data: DataSet,
    *,
    faults_at: Callable[[float], FaultModel],
    hardware: Hardware,
    target: Target,
    voltages: Sequence[float] = (),
    by: By = "weights",
    chips: int | None = None,
    images: int = 2000,
    protect: Sequence[int] = (),
    smaller: Mapping[str, DeployedBase] | None = None,
    out: Path,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Find the cheapest way to run that reaches a target, by measuring; write plan.json and check.json.

    The choice is made on one half of the test images and checked on the other half, on other chips.

    Args:
        base: The base model in its memory.
        fuses: Trained NeuralFuse modules by name.
        data: The data set. Only its test images are used.
        faults_at: Called with a voltage; returns the fault model.
        hardware: The hardware to plan for.
        target: The accuracy to reach.
        voltages: Voltages to measure at; by default the lowest one without errors and six below it, see
            `usual_voltages`.
        by: The energy to minimize: that of the ``weights``' memory, or of the whole ``inference``.
        chips: Maximum number of chips; by default as many as the target needs.
        images: Maximum number of images to choose by.
        protect: Numbers of protected most significant bits to measure without NeuralFuse.
        smaller: Smaller base models by name, to run without errors.
        out: Folder for the results.
        resume: Whether to resume from the results of an interrupted run in ``out``.
        say: Called with one line of text per voltage and per tenth chip.
    Raises:
        ConfigError: an option is illegal, or a layer cannot be counted.
        FileFormatError: the results of the interrupted run belong to another plan.
    """
    run = RunInfo(base.deployed.memory.device)
    bits = base.deployed.memory.layout.bits
    require(images >= 1, f"images must be at least 1: got images={images}.")
    require(len(data.test) >= 2, f"there must be at least 2 test images to plan with: got {len(data.test)}.")
    legal = all(1 <= msbs <= bits for msbs in protect)
    require(legal, f"protected bits (--protect) must be in 1..{bits}: got {', '.join(map(str, protect))}.")
    for name, other in (smaller or {}).items():
        size, own = base.model.image_size, other.model.image_size
        require(own == size, f"{name} must take the base model's images, {size}: got {own}.")
    check_writable(out)
    if not resume:
        (out / "check.json").unlink(missing_ok=True)  # from an older plan
    rows = data.test.order(data.name, "planning images")
    half = len(rows) // 2
    choosing, checking = data.test[rows[:half][:images]], data.test[rows[half:]]
    grid = sorted(set(voltages) or set(usual_voltages(hardware)), reverse=True)
    config = {
        "base": base.to_config(),
        "fuses": {name: {"fingerprint": _print(fuse), **fuse.trained} for name, fuse in fuses.items()},
        "smaller": {name: one.to_config() for name, one in (smaller or {}).items()},
        "data": data.to_config(),
        "images": len(choosing),
        "faults": faults_at(grid[-1]).to_config(),
        "hardware": hardware.to_config(),
        "voltages": grid,
        "protected_bits": list(protect),
        "chips": chips or target.chips,
        "target": {**asdict(target), "text": str(target)},
        "by": by,
    }
    partial = PartialRecord(out / ".plan.partial", config, resume=resume)
    planner = Planner(
        base.deployed, choosing, fuses, faults_at=faults_at, hardware=hardware, target=target, chips=chips,
        partial=partial, say=say,
    )  # fmt: skip
    options: list[Option] = []
    for voltage in grid:
        found = planner.at(voltage, protect)
        options += found
        say(_line(found, hardware, by))
    for name, other in (smaller or {}).items():
        found = planner.smaller(name, other.deployed)
        options += found
        say(_line(found[:1], hardware, by))
    choice, alternative = cheapest(options, target, by), cheapest(options, target, by, kinds=WITHOUT)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "config": config,
        "options": [one.to_config(target) for one in options],
        "pareto": pareto([(one.energy(by), mean(one.accuracies)) for one in options]),
        "choice": None if choice is None else options.index(choice),
        "alternative": None if alternative is None else options.index(alternative),
        "check": None,
    }
    if choice is not None:
        say(f"checking {choice.name} at {choice.voltage:.4g} {hardware.curve.unit} on other chips and images")
        model = (smaller or {})[choice.name] if choice.kind == "smaller model" else base
        fuse = fuses[choice.name] if choice.kind == "neuralfuse" else None
        faults = faults_at(choice.voltage)
        if choice.protected:
            faults = BitRates.protecting(faults, msbs=choice.protected, bits=base.deployed.memory.layout.bits)
        evaluation = make_evaluation(
            fuse, model, replace(data, test=checking), faults, chips=1 if choice.exact else chips or target.chips,
            out=out / "check.json", resume=resume, say=say,
        )  # fmt: skip
        values = [chip["pa"] if chip["pa_nf"] is None else chip["pa_nf"] for chip in evaluation["per_chip"]]
        record["check"] = {
            "record": "check.json", "chips": len(values), "images": len(checking),
            **target.judge(values, exact=choice.exact), "meets_target": target.is_met(values, exact=choice.exact),
        }  # fmt: skip
    record["run"] = run.collect()
    write_json(out / "plan.json", record)
    partial.remove()
    return record


def usual_voltages(hardware: Hardware) -> list[float]:
    """Return the lowest voltage without errors, and six below it at logarithmically spaced rates."""
    curve = hardware.curve
    positive = [point.ber for point in curve.points if point.ber > 0]
    require(len(positive) > 0, "a voltage curve must have a rate above 0 to plan with: it has none.")
    high = max(positive)
    low = min(high, max(min(positive), high / 300))
    rates = [low * (high / low) ** (k / 5) for k in range(5)]
    inner = [round(curve.voltage(rate), 4) for rate in rates]
    return [curve.voltage(0), *inner, curve.voltage(high)]


def plan_text(record: Mapping[str, Any]) -> str:
    """Return a plan as text."""
    curve, by = record["config"]["hardware"]["curve"], record["config"]["by"]
    what = "the weights' memory" if by == "weights" else "the whole inference"
    lines = [
        f"target: {record['config']['target']['text']}; energy of {what}, relative to {_top(curve)}",
        f"{curve['source']}\n",
        f"{'':3}{'way':26}{'voltage':>12}{'faulty':>10}{'energy':>9}{'mean':>9}{'worst':>9}{'chips':>7}  target",
    ]
    for place, one in enumerate(record["options"]):
        mark = "=> " if place == record["choice"] else " * " if place in record["pareto"] else "   "
        lines.append(
            f"{mark}{one['name']:26}{one['voltage']:>8.4g} {curve['unit']}{one['ber']:>10.3%}{one[by]:>9.3f}"
            f"{one['mean']:>9.2f}{one['worst']:>9.2f}{len(one['accuracies']):>7}  "
            f"{'reached' if one['meets_target'] else '-'}"
        )
    lines.append("\n=> the cheapest that reaches the target; * no other is both cheaper and more accurate")
    if record["choice"] is None:
        lines.append("No measured way reaches the target. Lower the target, or try higher voltages or other modules.")
        return "\n".join(lines)
    best = record["options"][record["choice"]]
    lines.append(f"choose {best['name']} at {best['voltage']:.4g} {curve['unit']}: {1 - best[by]:.1%} saved")
    if record["alternative"] is not None:
        other = record["options"][record["alternative"]]
        lines.append(
            f"without NeuralFuse, the best is {other['name']} at {other['voltage']:.4g} {curve['unit']}: "
            f"{1 - other[by]:.1%} saved"
        )
    check = record["check"]
    chips = "without errors" if best["exact"] else f"on {check['chips']} other chips"
    lines.append(
        f"checked {chips} and on {check['images']} other images: mean {check['mean']:.2f}%, worst "
        f"{check['worst']:.2f}%, {check['passed']} reach {record['config']['target']['accuracy']:g}%: the choice "
        f"{'holds' if check['meets_target'] else 'DOES NOT HOLD'}"
    )
    return "\n".join(lines)


def _top(curve: Mapping[str, Any]) -> str:
    return f"{curve['points'][-1][0]:g} {curve['unit']}"


def _line(options: Sequence[Option], hardware: Hardware, by: By) -> str:
    ways = ", ".join(f"{one.name} {mean(one.accuracies):.1f}% at {one.energy(by):.3f}" for one in options)
    return f"{options[0].voltage:.4g} {hardware.curve.unit}, {options[0].ber:.3%} faulty: {ways}"


def _print(fuse: NeuralFuse) -> str:
    return fingerprint(*fuse.state_dict().values())
