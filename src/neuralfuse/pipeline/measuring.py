"""Evaluation of a base model and a NeuralFuse on unseen chips, as a record. Each chip's result is kept at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neuralfuse.data import DataSet
from neuralfuse.errors import require
from neuralfuse.evaluation import ChipResult, Evaluation, PartialRecord, Target, evaluate, evaluation_record
from neuralfuse.faults import FaultModel, published_chips
from neuralfuse.files import fingerprint, write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed, deploy
from neuralfuse.nets import DeployedBase
from neuralfuse.published import counterpart
from neuralfuse.quant import Scheme
from neuralfuse.runs import RunInfo

_PLAIN_MEMORY = {"name", "scheme", "layers", "left_out", "input_range", "fingerprint"}  # no readout, activations, ...


def make_evaluation(
    fuse: NeuralFuse | None,
    base: DeployedBase,
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
    """Evaluate on the test images and write the record. Each chip's result is kept, so that the run can be resumed.

    Args:
        fuse: A trained NeuralFuse in eval mode. None measures CA and PA only.
        base: The base model in its memory.
        data: The data set. Only its test images are used.
        faults: The fault model.
        chips: Number of unseen chips; None for the ten published chips.
        faulty_generator: Whether the weights of NeuralFuse lie in faulty memory too.
        until: Width of the 95% interval, in points, at which to stop early; see `evaluate`.
        plain: The record of the same evaluation without NeuralFuse. Its chips' PA is not measured again.
        target: An accuracy to judge the chips by, for the record.
        operating_point: The supply voltage that gave the rate, and its curve, for the record.
        out: File for the record; None for none.
        resume: Whether to resume from the results that an interrupted run left next to ``out``.
        say: Called with one line of text per chip.
    Raises:
        ConfigError: ``out`` is a folder, or ``plain`` is the record of another evaluation.
    """
    deployed = base.deployed
    run = RunInfo(deployed.memory.device)
    require(out is None or not out.is_dir(), f"--out must be a file for the record: {out} is a folder.")
    module: NeuralFuse | Deployed | None = fuse
    if fuse is not None and faulty_generator:
        memory = deployed.memory
        module = deploy(fuse, scheme=memory.scheme, readout=memory.readout, input_range=fuse.input_range)
    the_chips = published_chips(faults) if chips is None else faults.chips(chips)
    config = {
        "base": {**base.to_config(), "trained": base.model.trained},
        "fuse": None if fuse is None else {"fingerprint": fingerprint(*fuse.state_dict().values()), **fuse.trained},
        "data": data.to_config(),
        "faults": faults.to_config(),
        **({} if operating_point is None else {"operating_point": dict(operating_point)}),
        **({"generator_memory": module.to_config()} if isinstance(module, Deployed) else {}),
        "chips": {"first_seed": the_chips[0].seed, "count": len(the_chips), "published": chips is None},
        **({} if until is None else {"until": until}),
    }
    partial = PartialRecord(None if out is None else out.with_name(f".{out.name}.partial"), config, resume=resume)

    def keep(result: ChipResult) -> None:
        done = partial.add(result)
        note = "" if result.pa_nf is None else f", PA(NF) {result.pa_nf:.2f}%"
        say(f"chip {done} of {len(the_chips)}: PA {result.pa:.2f}%{note}")

    result = evaluate(
        deployed, data.test, the_chips, fuse=module, prior=partial.prior(ChipResult),
        plain=None if plain is None else _evaluation(plain, config), report=keep, until=until,
    )  # fmt: skip
    published = _published(base, fuse, module, data, faults)
    record = evaluation_record(result, faults=faults, config=config, run=run, published=published)
    if target is not None:
        values = [one.pa if one.pa_nf is None else one.pa_nf for one in result.per_chip]
        exact = faults.one_chip or faults.cell_rate == 0  # all chips are the same
        goal = {"accuracy": target.accuracy, "confidence": target.confidence, "exact": exact}
        record["target"] = goal | target.judge(values, exact=exact)
    if out is not None:
        write_json(out, record)
    partial.remove()
    return record


def _published(
    base: DeployedBase, fuse: NeuralFuse | None, module: NeuralFuse | Deployed | None, data: DataSet, faults: FaultModel
) -> dict[str, Any] | None:
    """Return the paper's row for this evaluation, if it is comparable: faulty cells, plain memories of codes."""
    scheme, trained = base.deployed.memory.scheme, {} if fuse is None else fuse.trained
    as_there = isinstance(scheme, Scheme) and set(base.to_config()) <= _PLAIN_MEMORY
    if not as_there or isinstance(module, Deployed) or faults.kind not in ("reference", "stuck"):
        return None
    return counterpart(
        data=data.name, base=base.name, ber=faults.ber, bits=scheme.bits,
        generator=None if fuse is None else fuse.name,
        sources=[one.get("name", "") for one in trained.get("bases", [])],
        train_ber=trained.get("ber"), lam=trained.get("lam", 5.0), k_bits=trained.get("adversarial_bits", 0),
    )  # fmt: skip


def _evaluation(record: Mapping[str, Any], config: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation in a record without NeuralFuse, if it is of the same model, data and faults."""
    differ = [name for name in ("base", "data", "faults") if record["config"][name] != config[name]]
    names = ", ".join(differ)
    require(not differ, f"the record without NeuralFuse must be of the same evaluation: it differs in {names}.")
    chips = tuple(ChipResult(**one) for one in record["per_chip"])
    return Evaluation(record["ca_float"], record["ca"], None, chips)
