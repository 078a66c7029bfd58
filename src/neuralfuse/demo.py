"""The demo: the whole story on the digits, in minutes on two cores, without network or GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import load_data
from neuralfuse.evaluation import evaluation_text
from neuralfuse.faults import fault_model
from neuralfuse.files import check_writable, write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets import DeployedBase, load_base
from neuralfuse.pipeline import make_base, make_evaluation, make_fuse

BASE, GENERATOR, FAULTS, BER, CHIPS = "resnet8", "unets", "stuck", 0.06, 30
CURVE = (0.01, 0.02, 0.03, 0.045, 0.06, 0.08)
QAT = {"epochs": 12, "batch": 64, "lr": 0.1}
EOPM = {"epochs": 50, "batch": 128, "lr": 4e-3, "n_chips": 4, "validate_every": 80}


def run_demo(out: Path, *, seed: int, device: torch.device, say: Callable[[str], None]) -> dict[float, dict[str, Any]]:
    """Train a base model and a NeuralFuse on the digits, measure both, and write everything to a folder.

    Args:
        out: Folder for ``base/``, ``fuse/`` and ``results.json``, the record at the rate trained for.
        seed: Seed of both trainings.
        device: Device to run on.
        say: Called with lines of text for each stage.
    Returns:
        The evaluation record at each rate. The one at ``BER``, the rate trained for, has the seconds of the whole demo
        under ``run``.
    """
    started = time.monotonic()
    qat = QatConfig(seed=seed, **QAT)  # type: ignore[arg-type]
    eopm = EopmConfig(seed=seed, **EOPM)  # type: ignore[arg-type]
    check_writable(out)
    data = load_data("digits", device=device)

    say(f"1. Train {BASE} on {len(data.train)} images of digits, quantization-aware for 8-bit weights.")
    make_base(BASE, data, qat, out=out / "base", device=device)
    base = DeployedBase.of(load_base(out / "base"), device)
    words = base.deployed.memory.layout.words
    say(f"   {words:,} weights, {words * 8:,} memory cells.")

    say(f"2. Lower the voltage: {BER:.1%} of the cells get stuck. Train NeuralFuse ({GENERATOR}) against such chips.")
    make_fuse(GENERATOR, [base], data, eopm, faults=fault_model(FAULTS, ber=BER), out=out / "fuse", device=device)
    fuse = NeuralFuse.from_pretrained(out / "fuse").to(device)

    say(f"3. Measure on {CHIPS} chips never seen in training, at {len(CURVE)} rates.")
    records = {ber: make_evaluation(fuse, base, data, fault_model(FAULTS, ber=ber), chips=CHIPS) for ber in CURVE}
    record = records[BER]
    record["run"] = record["run"] | {"seconds": round(time.monotonic() - started, 1)}  # the time of the whole demo
    write_json(out / "results.json", record)
    return records


def table(record: Mapping[str, Any]) -> str:
    """Return the demo's record as text."""
    return f"{evaluation_text(record)}\n({record['run']['seconds']:.0f} seconds)"
