"""How long it takes from a trained base model to the paper's recovery.

    python benchmarks/recovery.py --data cifar10 --data-dir DATA --device cuda    # ResNet18, ConvL, 1% reference chips
    python benchmarks/recovery.py --small                                         # the digits, on a CPU

Trains the base model (timed apart), then NeuralFuse, and notes when the validation images and chips first show the
PA(NF) that is aimed at. The state to keep is chosen on them too; the test images and the ten published chips are scored
once, at the end. Paper: 87.8% at 1% with ConvL, for 17 hours of a V100.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from timing import machine, table

from neuralfuse.config import Autocast, EopmConfig, QatConfig, Running, base_recipe
from neuralfuse.data import load_data
from neuralfuse.faults import fault_model
from neuralfuse.files import write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import DeployedBase, load_base
from neuralfuse.pipeline import make_base, make_evaluation, make_fuse
from neuralfuse.train import ProgressBar


class Clock:
    """Notes the seconds at which each validation was over."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seen: list[tuple[float, int, float]] = []

    def stepped(self, step: int, total: int, losses: Mapping[str, float]) -> None:
        """Nothing to note."""

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note it."""
        self.seen.append((time.perf_counter() - self.started, step, metrics["pa_nf"]))

    def close(self) -> None:
        """The last validation has been noted."""


def configurations(small: bool) -> tuple[str, str, str, float, float, QatConfig, EopmConfig]:
    """Return base model, generator, data set, rate, the PA(NF) aimed at, and how to train both."""
    if small:
        eopm = EopmConfig(epochs=40, batch=128, lr=4e-3, n_chips=4, validate_every=20)
        return "resnet8", "unets", "digits", 0.03, 75.0, QatConfig(epochs=12, batch=64), eopm
    eopm = EopmConfig(epochs=12, batch=256, lr=2e-3, n_chips=10, validate_every=100)
    return "resnet18", "convl", "cifar10", 0.01, 87.8, base_recipe("short"), eopm


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("recovery"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--autocast", choices=Autocast.__args__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    device = options.device
    base, generator, name, ber, target, qat, eopm = configurations(options.small)
    data = load_data(name, options.data_dir, device=device)
    eopm = replace(eopm, epochs=options.epochs or eopm.epochs)
    faults = fault_model("reference", ber=ber)

    started = time.perf_counter()
    if not (options.out / "base" / "config.json").exists():
        make_base(base, data, qat, out=options.out / "base", device=device, listeners=[ProgressBar(base)])
    seconds_base = time.perf_counter() - started
    model = load_base(options.out / "base")
    running = Running(autocast=options.autocast, compile=options.compile)
    opened = DeployedBase(model, deploy(model.module.to(device), scheme=model.scheme, running=running))

    clock = Clock()
    watch = [clock, ProgressBar(generator)]
    make_fuse(
        generator, [opened], data, eopm, faults=faults, out=options.out / "fuse", device=device, listeners=watch
    )  # fmt: skip
    seconds = time.perf_counter() - clock.started
    fuse = NeuralFuse.from_pretrained(options.out / "fuse").to(device)
    record = make_evaluation(fuse, opened, data, faults, chips=None)
    reached = next(((when, step) for when, step, pa_nf in clock.seen if pa_nf >= target), None)
    record["time_to_accuracy"] = {
        "target": target,
        "reached": reached,
        "seconds": seconds,
        "seconds_base": seconds_base,
    }
    record["validations"] = clock.seen
    write_json(options.out / "recovery.json", record)
    row = [
        base,
        name,
        f"{100 * ber:g}%",
        generator,
        f"{record['ca']:.2f}",
        f"{record['pa']:.2f}",
        f"{record['ca_nf']:.2f}",
        f"{record['pa_nf']:.2f}",
        "not" if reached is None else f"{reached[0]:.1f} s",
        f"{seconds:.1f} s",
    ]
    print(f"{machine(device)}\n")
    head = [
        "base model",
        "data",
        "rate",
        "generator",
        "CA",
        "PA",
        "CA(NF)",
        "PA(NF)",
        f"{target} on validation",
        "whole run",
    ]
    print(table(head, [row]))


if __name__ == "__main__":
    main()
