"""Evaluation: what a base model and a NeuralFuse are worth on unseen chips, kept chip by chip, as a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuralfuse.data import DataSet
from neuralfuse.errors import FileFormatError, require
from neuralfuse.evaluation import ChipResult, Evaluation, Run, Target, evaluate, evaluation_record
from neuralfuse.faults import FaultModel, published_chips
from neuralfuse.files import check_writable, fingerprint, read_json, write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed, deploy
from neuralfuse.nets import BaseModel
from neuralfuse.pipeline.training import base_config
from neuralfuse.published import counterpart
from neuralfuse.quant import Scheme

PARTIAL_SCHEMA = "neuralfuse/partial-evaluation/1"
_PLAIN_MEMORY = {"name", "scheme", "layers", "left_out", "input_range", "fingerprint"}  # no readout, activations, ...


def measure(
    fuse: NeuralFuse | Path | None,
    base: tuple[BaseModel, Deployed],
    data: DataSet,
    faults: FaultModel,
    *,
    chips: int | None,
    faulty_generator: bool = False,
    until: float | None = None,
    plain: Mapping[str, Any] | None = None,
    target: Target | None = None,
    operating_point: Mapping[str, Any] | None = None,
    out: Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Evaluate on the test images, keeping each chip's result as it comes, and write the record.

    Args:
        fuse: A trained NeuralFuse or its folder; None measures CA and PA only.
        base: The base model, and its deployed form.
        data: Whose test images.
        faults: The fault model.
        chips: How many unseen chips; None for the ten published ones.
        faulty_generator: Whether the weights of NeuralFuse lie in faulty memory too.
        until: Stop early, once PA(NF) is known this well; see `evaluate`.
        plain: The record of the same evaluation without NeuralFuse; what it says of a chip is not measured again.
        target: An accuracy to judge the chips by, for the record.
        operating_point: The voltage that the rate came from, and its curve, for the record.
        out: File of the record; None for none.
        resume: Go on from the results that an interrupted run left beside ``out``.
        say: Told of each chip.
    """
    model, deployed = base
    run = Run(deployed.memory.device)
    require(out is None or not out.is_dir(), f"--out must be a file for the record: {out} is a folder.")
    if isinstance(fuse, Path):
        fuse = NeuralFuse.from_pretrained(fuse).to(deployed.memory.device)
    module: NeuralFuse | Deployed | None = fuse
    if fuse is not None and faulty_generator:
        memory = deployed.memory
        module = deploy(fuse, scheme=memory.scheme, readout=memory.readout, input_range=fuse.input_range)
    the_chips = published_chips(faults) if chips is None else faults.chips(chips)
    config = {
        "base": {**base_config(model, deployed), "trained": model.trained},
        "fuse": None if fuse is None else {"fingerprint": fingerprint(*fuse.state_dict().values()), **fuse.trained},
        "data": data.to_config(),
        "faults": faults.to_config(),
        **({} if operating_point is None else {"operating_point": dict(operating_point)}),
        **({"generator_memory": module.to_config()} if isinstance(module, Deployed) else {}),
        "chips": {"first_seed": the_chips[0].seed, "count": len(the_chips), "published": chips is None},
        **({} if until is None else {"until": until}),
    }
    partial = None if out is None else out.with_name(f".{out.name}.partial")
    results: list[ChipResult] = []
    if partial is not None:
        check_writable(partial.parent)
        results = _known(partial, config) if resume and partial.exists() else []

    def keep(result: ChipResult) -> None:
        results.append(result)
        note = "" if result.pa_nf is None else f", PA(NF) {result.pa_nf:.2f}%"
        say(f"chip {len(results)} of {len(the_chips)}: PA {result.pa:.2f}%{note}")
        if partial is not None:
            kept = {"schema": PARTIAL_SCHEMA, "config": config, "per_chip": [asdict(one) for one in results]}
            write_json(partial, kept)

    known = {result.seed: result for result in results}
    before = None if plain is None else _evaluation(plain, config)
    result = evaluate(deployed, data.test, the_chips, fuse=module, known=known, plain=before, report=keep, until=until)
    published = _published(model, deployed, fuse, module, data, faults)
    record = evaluation_record(result, faults=faults, config=config, run=run, published=published)
    if target is not None:
        values = [one.pa if one.pa_nf is None else one.pa_nf for one in result.per_chip]
        exact = faults.one_chip or faults.cell_rate == 0  # there is no other chip to speak of
        asked = {"accuracy": target.accuracy, "confidence": target.confidence, "exact": exact}
        record["target"] = asked | target.judge(values, exact=exact)
    if out is not None and partial is not None:
        write_json(out, record)
        partial.unlink(missing_ok=True)
    return record


def _published(
    model: BaseModel,
    deployed: Deployed,
    fuse: NeuralFuse | None,
    module: NeuralFuse | Deployed | None,
    data: DataSet,
    faults: FaultModel,
) -> dict[str, Any] | None:
    """Return the paper's row for what is measured, if it is measured as in the paper: faulty cells, plain memories."""
    scheme, trained = deployed.memory.scheme, {} if fuse is None else fuse.trained
    as_there = isinstance(scheme, Scheme) and set(base_config(model, deployed)) <= _PLAIN_MEMORY
    if not as_there or isinstance(module, Deployed) or faults.kind not in ("reference", "stuck"):
        return None
    return counterpart(
        data=data.name, base=model.name, ber=faults.ber, bits=scheme.bits,
        generator=None if fuse is None else fuse.name, sources=[one["name"] for one in trained.get("bases", [])],
        train_ber=trained.get("ber"), lam=trained.get("lam", 5.0), k_bits=trained.get("adversarial_bits", 0),
    )  # fmt: skip


def _evaluation(record: Mapping[str, Any], config: Mapping[str, Any]) -> Evaluation:
    """Return what a record without NeuralFuse says, for an evaluation of the same model on the same chips."""
    differ = [name for name in ("base", "data", "faults") if record["config"][name] != config[name]]
    require(not differ, f"the record without NeuralFuse must be of the same evaluation: {', '.join(differ)} differ.")
    chips = tuple(ChipResult(**one) for one in record["per_chip"])
    return Evaluation(record["ca_float"], record["ca"], None, chips)


def _known(path: Path, config: Mapping[str, Any]) -> list[ChipResult]:
    kept = read_json(path, PARTIAL_SCHEMA)
    if kept["config"] != config:
        raise FileFormatError(
            f"{path} must belong to this very evaluation to be resumed: its model, data or chips differ. "
            "Pass the same options, or leave --resume out."
        )
    return [ChipResult(**entry) for entry in kept["per_chip"]]


def summary(record: Mapping[str, Any]) -> str:
    """Return an evaluation record as a few lines of text."""
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
        *([f"{lost:.4g} weights a chip read as infinity or NaN"] if lost else []),
        f"CA      {record['ca']:6.2f}%   without bit errors (floating point {record['ca_float']:.2f}%)",
        f"PA      {record['pa']:6.2f}%   {_spread(record['pa_sd'])}",
    ]
    if record["rp"] is not None:
        interval = record["rp_ci95"]
        known = "" if interval is None else f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f}"
        lines += [
            f"CA(NF)  {record['ca_nf']:6.2f}%   behind NeuralFuse, without bit errors",
            f"PA(NF)  {record['pa_nf']:6.2f}%   {_spread(record['pa_nf_sd'])}",
            f"RP      {record['rp']:+6.2f}    points recovered{known}",
        ]
    paper = record["published"]
    if paper is not None:
        printed = f"CA {paper['ca']}, PA {paper['pa']} +- {paper['pa_std']}"
        if "pa_nf" in paper:
            printed += f", CA(NF) {paper['ca_nf']}, PA(NF) {paper['pa_nf']} +- {paper['pa_nf_std']}, RP {paper['rp']}"
        doubt = "" if paper["misprint"] is None else f" (misprint: {paper['misprint']})"
        lines.append(f"the paper, {paper['table'].replace('table', 'Table ')}: {printed}{doubt}")
    judged = record.get("target")
    if judged is not None:
        all_of_them = f", so at least {judged['share_at_least']:.1%} of all chips do ({judged['confidence']:.0%} sure)"
        lines.append(
            f"{judged['passed']} of {record['chips']} chips reach {judged['accuracy']:g}%"
            f"{'' if judged['exact'] else all_of_them}; the worst has {judged['worst']:.2f}%"
        )
    return "\n".join(lines)


def _operating_point(point: Mapping[str, Any] | None) -> list[str]:
    """Return where a rate came from, as at most one line."""
    if point is None or point["curve"] is None:
        return []
    curve = point["curve"]
    return [
        f"at {point['voltage']:g} {curve['unit']}, by {'a model' if curve['model'] else 'a curve'}: {curve['source']}"
    ]


def _spread(sd: float | None) -> str:
    return "on one chip" if sd is None else f"+- {sd:.2f} from chip to chip"
