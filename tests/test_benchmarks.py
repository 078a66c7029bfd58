"""The benchmarks run; the reference's procedures, against which we time ours, must be the reference's."""

from __future__ import annotations

import sys

import pytest
import torch

from helpers.commands import shell
from helpers.places import ROOT
from neuralfuse import published
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "memory.py --base resnet8 --rounds 2",
        "step.py step evaluation latency --base resnet8 --rounds 2 --batches 4 --chips 2 --images 64",
        "heap.py --base vgg11-tiny resnet8 vgg11-quarter --rounds 1",
        "recovery.py --small --epochs 3 --out recovery",
    ],
)
def test_the_benchmarks_run(command, tmp_path):
    done = shell(f"python {ROOT / 'benchmarks'}/{command}", tmp_path)
    assert done.stdout.count("| ") > 20


@pytest.mark.slow
def test_the_study_s_tables_are_made_from_its_record(tmp_path):
    record = ROOT / "results" / "estimators.json"
    options = f"--out {record} --report --picture curves.png"
    done = shell(f"python {ROOT / 'benchmarks'}/estimators.py {options}", tmp_path)
    page = next((ROOT / "docs" / "adr").glob("0007-*.md")).read_text(encoding="utf-8")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert [line for line in page.splitlines() if line.startswith("| ")] == rows
    assert (tmp_path / "curves.png").stat().st_size > 20_000


@pytest.mark.slow
def test_the_simulator_counts_the_same_accesses(tmp_path):
    """SCALE-Sim itself, on the six generators: the paper's totals (its Table 6), and every read and write."""
    pytest.importorskip("scalesim")
    done = shell(f"python {ROOT / 'benchmarks' / 'scale_sim.py'}", tmp_path)
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ") and "stationary" in line]
    assert {row[0].strip("| "): int(row[6].replace(",", "")) for row in rows} == {
        row["model"].lower(): row["twma"] for row in published.rows("table6", kind="generator")
    }
    assert [row[7] for row in rows] == ["yes"] * 6
    done = shell(f"python {ROOT / 'benchmarks' / 'scale_sim.py'} --array-only --dataflows ws is", tmp_path)
    assert done.stdout.count("| yes |") == 12
