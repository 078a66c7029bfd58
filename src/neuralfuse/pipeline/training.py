"""Trainings and the folders that they write: a base model, a pretrained generator, a NeuralFuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import DataSet
from neuralfuse.errors import require
from neuralfuse.faults import FaultModel
from neuralfuse.files import fingerprint, load_weights, read_json, write_json
from neuralfuse.fuse import SCHEMA, NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import BaseModel, DeployedBase, base_model, save_base
from neuralfuse.nets.generators import Fit
from neuralfuse.quant import Scheme
from neuralfuse.ranges import InputRange
from neuralfuse.runs import RunInfo
from neuralfuse.scoring import accuracy, plain_inputs
from neuralfuse.seeds import derive
from neuralfuse.train import ALONE, Listener, Ranks, error_config, pretrain, train_base, train_fuse

TRAINING_SCHEMA = "neuralfuse/training/1"


def make_base(
    name: str,
    data: DataSet,
    config: QatConfig,
    *,
    faults: FaultModel | None = None,
    out: Path,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    device: torch.device,
) -> dict[str, Any]:
    """Train a base model of the registry and write its folder; return the record of the training.

    With ``faults``, the model is trained with bit errors of this fault model (RandBET).
    """
    run = RunInfo(device)
    module = base_model(
        name,
        classes=len(data.classes),
        channels=data.channels,
        image_size=data.image_size,
        seed=derive(config.seed, "base", name) >> 1,
    ).to(device)
    state = train_base(module, data, config, faults=faults, out=out, resume=resume, listeners=listeners)
    scheme, input_range = Scheme(bits=config.bits or 8), InputRange()
    inputs, labels = plain_inputs(data.test, input_range), data.test.labels
    results = {
        "validation": state.best_score,
        "ca_float": accuracy(module, inputs, labels),
        "ca": accuracy(deploy(module, scheme=scheme), inputs, labels),
    }
    trained: dict[str, Any] = {
        "config": {**config.to_config(), **error_config(faults), "data": data.to_config()},
        **results,
    }
    save_base(
        BaseModel(
            name=name,
            module=module,
            classes=len(data.classes),
            channels=data.channels,
            image_size=data.image_size,
            scheme=scheme,
            input_range=input_range,
            trained=trained,
        ),
        out,
    )
    record = {
        "schema": TRAINING_SCHEMA,
        "config": {"base": name, **trained["config"]},
        "best_step": state.best_step,
        **results,
        "history": state.history,
        "run": run.collect(),
    }
    write_json(out / "training.json", record)
    return record


def make_start(
    generator: str,
    data: DataSet,
    config: QatConfig,
    *,
    fit: Fit = "exact",
    out: Path,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    device: torch.device,
) -> dict[str, Any]:
    """Pretrain a generator on the classes and write its folder, a start for `make_fuse`; return the record."""
    run = RunInfo(device)
    fuse = _untrained(generator, data, InputRange(), fit, config.seed).to(device)
    state = pretrain(fuse, data, config, out=out, resume=resume, listeners=listeners)
    fuse.save_pretrained(out)
    record = {
        "schema": TRAINING_SCHEMA,
        "config": {"generator": generator, **fuse.trained},
        "best_step": state.best_step,
        "accuracy": state.best_score,
        "history": state.history,
        "run": run.collect(),
    }
    write_json(out / "training.json", record)
    return record


def make_fuse(
    generator: str | nn.Module,
    bases: Sequence[DeployedBase],
    data: DataSet,
    config: EopmConfig,
    *,
    faults: FaultModel,
    start: Path | None = None,
    fit: Fit = "exact",
    out: Path,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    device: torch.device,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train NeuralFuse against base models and write its folder; return the record of the training.

    Of several processes that train together, only the first writes. ``start`` is the folder of a NeuralFuse that
    provides the initial weights.

    Raises:
        ConfigError: the module in ``start`` has another generator or other channels.
    """
    run = RunInfo(device)
    fuse = _untrained(generator, data, bases[0].deployed.input_range, fit, config.seed)
    if start is not None:
        _begin_with(fuse, start)
    fuse.to(device)
    deployed = [base.deployed for base in bases]
    state = train_fuse(
        fuse, deployed, data, config,
        faults=faults, out=out, resume=resume, listeners=listeners if ranks.first else (), ranks=ranks,
    )  # fmt: skip
    best = next(entry for entry in state.history if entry["step"] == state.best_step)
    fuse.trained["bases"] = [base.to_config() for base in bases]
    if ranks.first:
        fuse.save_pretrained(out)
    record = {
        "schema": TRAINING_SCHEMA,
        "config": fuse.trained,
        "best_step": state.best_step,
        "ca_nf": best["ca_nf"],
        "pa_nf": best["pa_nf"],
        "history": state.history,
        "run": {**run.collect(), "processes": ranks.size},
    }
    if ranks.first:
        write_json(out / "training.json", record)
    return record


def _untrained(
    generator: str | nn.Module, data: DataSet, input_range: InputRange, fit: Fit, seed: int
) -> NeuralFuse:  # fmt: skip
    return NeuralFuse(
        generator,
        channels=data.channels,
        image_size=data.image_size,
        input_range=input_range,
        fit=fit,
        seed=derive(seed, "generator", generator) >> 1 if isinstance(generator, str) else None,
    )


def _begin_with(fuse: NeuralFuse, folder: Path) -> None:
    config, path = read_json(folder / "config.json", SCHEMA), folder / "model.safetensors"
    theirs, own = ((config.get("generator"), config.get("channels")), (fuse.name, fuse.channels))
    kinds = [f"{name} for {channels} channels" for name, channels in (own, theirs)]
    require(theirs == own, f"--start {folder} must hold {kinds[0]}: got {kinds[1]}.")
    load_weights(fuse, path, f"generator {fuse.name} for {fuse.image_size[0]}x{fuse.image_size[1]}")
    fuse.trained = {**config.get("trained", {}), "fingerprint": fingerprint(*fuse.state_dict().values())}
