"""What giving freed memory back to the system costs a training step, as a Dask worker does by its own settings.

    python benchmarks/heap.py

A step of QAT (a base model, 128 images), each way in a process of its own with one thread, in turn. Prints the table of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

import torch
from timing import machine, table

DASK = {"MALLOC_TRIM_THRESHOLD_": "65536"}  # distributed.nanny.pre-spawn-environ
WAYS = {
    "memory given back at once (Dask's setting)": (DASK, False),
    "the C library's own setting": ({}, False),
    "memory kept (ours, under Dask's setting)": (DASK, True),
}
STEP = """
import statistics, sys, time, torch
from neuralfuse.nets import base_model
from neuralfuse.quant import Scheme, quantized_call
from neuralfuse.steps.engines import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[2] == "True":
    keep_freed_memory()
model = base_model(sys.argv[1], classes=10, channels=3, image_size=(32, 32), seed=1)
x = torch.zeros(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
labels = torch.zeros(128, dtype=torch.int64)
def step():
    began = time.perf_counter()
    torch.nn.functional.cross_entropy(quantized_call(model, x, Scheme()), labels).backward()
    return time.perf_counter() - began
step()
print(statistics.median(step() for _ in range(5)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", nargs="+", default=["resnet18-quarter", "vgg11-quarter"])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rows = []
    for base in chosen.base:
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(chosen.rounds):
            for way, (settings, kept) in WAYS.items():
                done = subprocess.run(
                    [sys.executable, "-c", STEP, base, str(kept)],
                    env={**os.environ, **settings}, capture_output=True, text=True, check=True,
                )  # fmt: skip
                taken[way].append(float(done.stdout))
        best = statistics.median(taken[list(WAYS)[-1]])
        for way, seconds in taken.items():
            median = statistics.median(seconds)
            rows.append([base, way, f"{median:.3f} s", f"{median / best:.2f}"])
    print(machine(torch.device("cpu")))
    print(table(["base model", "way", "median", "ratio"], rows))


if __name__ == "__main__":
    main()
