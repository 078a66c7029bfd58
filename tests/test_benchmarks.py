"""The reference's procedures, against which we time ours, must be the reference's."""

from __future__ import annotations

import sys

import pytest
import torch

from conftest import ROOT
from neuralfuse.faults import Chip, Reference
from neuralfuse.memory import deploy
from neuralfuse.nets import base_model


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reference

    yield reference
    sys.modules.pop("reference")


@pytest.mark.parametrize("seed", [50000, 7])
def test_its_chips_are_the_published_ones(reference, seed):
    memory = deploy(base_model("resnet8", classes=10, channels=3, image_size=(32, 32), seed=0)).memory
    masks = reference.fault_masks(0.01, seed)
    read = memory.read(Chip(Reference(ber=0.01), seed))
    wanted = memory.split(memory.codes.index_copy(0, read.index, read.codes.to(memory.codes.dtype)))
    for one in memory.stored:
        assert torch.equal(reference.faulted(memory.codes_of(one.name), masks), wanted[one.name]), one.name
