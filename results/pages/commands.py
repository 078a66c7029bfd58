"""What commands print, and what `neuralfuse energy` works out, for the pages that show it."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import torch

from neuralfuse.cli.main import run
from neuralfuse.energy import GENERATOR_LAYERS, Counts, OperatingPoint, SystolicArray, Technology, count, energy_record
from neuralfuse.faults import default_curve
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets import base_model
from pages.records import PageError

SIZE, ARRAY = (32, 32), SystolicArray(rows=32, columns=32, dataflow="output-stationary")


@cache
def printed(command: str) -> str:
    """Return what ``neuralfuse COMMAND`` prints on standard output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = run(command.split())
    if code != 0:
        raise PageError(f"neuralfuse {command} must succeed: it ended with exit code {code}.")
    return output.getvalue()


def energy(base: str, generator: str, technology: str = "45nm", bank_kib: float = 8) -> dict[str, Any]:
    """Return the record of ``neuralfuse energy BASE --generator GENERATOR --ber 0.01``; each model is traced once."""
    return energy_record(
        (base, counts_of_base(base)),
        (generator, counts_of_generator(generator)),
        point=OperatingPoint.at(default_curve(), ber=0.01),
        array=ARRAY,
        technology=Technology.named(technology),
        kib=bank_kib,
    )


@cache
def counts_of_base(name: str) -> Counts:
    """Return what one image of CIFAR's size takes of a base model."""
    with torch.device("meta"):
        module = base_model(name, classes=10, channels=3, image_size=SIZE, seed=0)
    return count(module, channels=3, image_size=SIZE, array=ARRAY)


@cache
def counts_of_generator(name: str) -> Counts:
    """Return what one image of CIFAR's size takes of a NeuralFuse."""
    with torch.device("meta"):
        fuse = NeuralFuse(name, channels=3, image_size=SIZE, seed=0)
    return count(fuse, channels=3, image_size=SIZE, array=ARRAY, layers=GENERATOR_LAYERS)
