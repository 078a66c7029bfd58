"""How long a chip takes, beside a dense mask and the reference's procedure: ``python benchmarks/memory.py``.

All of them fault the same model in the same run, in turn, so that the ratios hold on a busy machine too. Prints the
table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from neuralfuse.faults import Chip, FaultModel, fault_model
from neuralfuse.memory import Deployed, deploy
from neuralfuse.nets import base_model

BITS = 8
Load = dict[str, Tensor]


def dense_mask(base: Deployed, ber: float, seed: int) -> Load:
    """Fault a model by one random number for each cell: the obvious way."""
    draw = torch.Generator().manual_seed(seed)
    out = {}
    for one in base.memory.stored:
        codes = base.memory.codes_of(one.name)
        faulty = torch.rand(*codes.shape, BITS, generator=draw) < ber
        ones = torch.rand(*codes.shape, BITS, generator=draw) < 0.5
        place = 2 ** torch.arange(BITS)
        lost, set_ = (faulty * place).sum(-1), ((faulty & ones) * place).sum(-1)
        read = ((codes.long() & 0xFF) & ~lost) | set_
        out[one.name] = ((read ^ 0x80) - 0x80).float() * (one.tensor.abs().max() / 127)
    return out


def reference_procedure(base: Deployed, ber: float, seed: int) -> Load:
    """Fault a model as the NeuralFuse reference does: a map of 8192 x 128 cells, tiled and laid over each layer."""
    faulty = np.random.RandomState(seed).rand(8192, 128) < ber
    ones = np.random.RandomState(seed + 1).rand(8192, 128) < 0.5
    place = 1 << np.arange(BITS)
    planes = [np.tile((faulty & polarity).reshape(8192, 16, BITS), (1, 16, 1)) for polarity in (~ones, ones)]
    at_0, at_1 = ((plane * place).sum(-1).astype(np.uint8).ravel() for plane in planes)
    out = {}
    for one in base.memory.stored:
        codes = base.memory.codes_of(one.name).numpy().view(np.uint8)
        lost, set_ = (np.resize(mask, codes.size).reshape(codes.shape) for mask in (at_0, at_1))
        read = ((codes & ~lost) | set_).view(np.int8)
        out[one.name] = torch.from_numpy(read).float() * (one.tensor.abs().max() / 127)
    return out


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds that one call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def measure(base: Deployed, faults: FaultModel, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each way: in each round five runs of each in turn, and one of the dense mask."""
    device = base.memory.device
    base(torch.zeros(2, 3, 32, 32, device=device))  # decides how it runs
    seeds = count()
    made = [base.perturbed(Chip(faults, next(seeds))) for _ in range(2)]
    values = base.memory.values
    room = torch.empty_like(values)

    def new_chip() -> None:
        base.weights_through(base.perturbed(Chip(faults, next(seeds))))

    def switch() -> None:
        made.reverse()
        base.weights_through(made[0])

    ways: dict[str, Callable[[], object]] = {
        "a new chip, ready to run": new_chip,
        "switching between two chips": switch,
        "floor: a copy of the float weights": lambda: room.copy_(values),
    }
    if device.type == "cpu":
        ways["the reference's procedure, a new chip"] = lambda: reference_procedure(base, faults.ber, next(seeds))
        ways["a dense mask, a new chip"] = lambda: dense_mask(base, faults.ber, next(seeds))
    for step in ways.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            # Several in a row: the first also pays for giving back what the one before it left in the allocator.
            taken[name] += [timed(step, device) for _ in range(1 if "dense" in name else 5)]
    return taken


def table(taken: dict[str, list[float]]) -> str:
    """Return the measurements as Markdown, each beside the new chip."""
    ours = statistics.median(next(iter(taken.values())))
    lines = ["| what | best [ms] | median [ms] | beside a new chip (medians) |", "| --- | --- | --- | --- |"]
    for name, values in taken.items():
        middle = statistics.median(values)
        lines.append(f"| {name} | {min(values):.1f} | {middle:.1f} | {middle / ours:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="resnet18")
    parser.add_argument("--faults", default="stuck")
    parser.add_argument("--ber", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model: nn.Module = base_model(options.base, classes=10, channels=3, image_size=(32, 32), seed=0)
    base = deploy(model.to(options.device))
    taken = measure(base, fault_model(options.faults, ber=options.ber), options.rounds)
    facts = Path("/proc/cpuinfo")
    names = [line for line in facts.read_text().splitlines() if line.startswith("model name")] if facts.exists() else []
    chip = (
        torch.cuda.get_device_name() if options.device != "cpu" else (names or [platform.processor()])[0].split(":")[-1]
    )
    print(
        f"{options.base}, {base.memory.layout.words:,} words of {BITS} bits, {100 * options.ber:g}% {options.faults}, "
        f"{options.rounds} rounds; {chip.strip()}, {torch.get_num_threads()} threads, torch {torch.__version__}, numpy "
        f"{np.__version__}, Python {platform.python_version()}\n\n{table(taken)}"
    )


if __name__ == "__main__":
    main()
