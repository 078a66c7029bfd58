"""What the benchmarks share: timing ways in turn, the machine's matrix-product rate, and what to say of the machine."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

Way = Callable[[], object]


def seconds(way: Way, device: torch.device) -> float:
    """Return how long one call takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(ways: Mapping[str, Way], device: torch.device, rounds: int, least: float = 0.0) -> dict[str, list[float]]:
    """Return the seconds of each way: called once before, then in each round one after the other.

    A round calls a way again until it has taken ``least`` seconds: the first call also pays for giving back what the
    way before it left in the allocator.
    """
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            own = [seconds(way, device)]
            while sum(own) < least:
                own.append(seconds(way, device))
            taken[name] += own
    return taken


def matmul_rate(device: torch.device) -> float:
    """Return the operations a second of float32 matrix products, the best of twenty."""
    a, b = (torch.rand(2048, 2048, device=device) for _ in range(2))
    best = min(seconds(lambda: a @ b, device) for _ in range(20))
    return 2 * 2048**3 / best


def operations(way: Way) -> int:
    """Return the floating-point operations of convolutions and matrix products in one call, a multiplication and an
    addition as two."""
    with FlopCounterMode(display=False) as counter:
        way()
    return int(counter.get_total_flops())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: float) -> str:
    """Return seconds, in seconds or milliseconds."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def machine(device: torch.device) -> str:
    """Return what ran: the processor, or the accelerator, and versions."""
    facts = Path("/proc/cpuinfo")
    names = [line for line in facts.read_text().splitlines() if line.startswith("model name")] if facts.exists() else []
    name = (names or [platform.processor()])[0].split(":")[-1].strip()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, NumPy {np.__version__}, "
        f"Python {platform.python_version()}"
    )


def common_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options of every benchmark."""
    parser.add_argument("--base", default="resnet18")
    parser.add_argument("--faults", default="stuck")
    parser.add_argument("--ber", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
