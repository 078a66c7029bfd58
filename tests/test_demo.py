"""The demo, and the page for a chip of one's own, which begins with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from helpers.commands import followed, shell
from helpers.pages import blocks, lines
from helpers.places import ROOT
from neuralfuse.faults import FaultMap

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, dict]:
    """The folder that the demo made, and the record that it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = shell("neuralfuse demo --out demo --json", folder)
    return folder / "demo", json.loads(done.stdout)


def test_the_demo_recovers(demo):
    folder, record = demo
    assert record == json.loads((folder / "results.json").read_text())
    assert record["schema"] == "neuralfuse/evaluation/1"
    assert record["run"]["seconds"] > 0
    assert record["pa"] < 70
    assert record["rp"] >= 15
    assert record["rp_ci95"][0] > 0
    assert record["ca"] - record["ca_nf"] <= 3
    assert record["chips"] == 30
    made = {path.name for path in folder.iterdir()}
    assert made == {"results.json", "accuracy.png", "base", "fuse"}
    assert (folder / "fuse" / "model.safetensors").exists()


def test_the_page_for_a_chip_of_one_s_own_runs(demo, tmp_path):
    """Its commands in order, from made-up measurements to both pictures."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(demo[0], tmp_path / "demo")
    commands = [lines(block) for block in blocks("docs/your-chip.md")]
    assert commands[0].pop(0) == "neuralfuse demo --out demo"  # which has been run
    shown = ["".join(followed(line, tmp_path) for line in block) for block in commands]
    assert "RP" in shown[-1]
    made = FaultMap.load(tmp_path / "chip.npz")
    assert made.synthetic
    assert made.voltages == (0.72, 0.7, 0.68, 0.66)
    assert made.recovered() == 0
    of_all, own = (float(value) for value in re.findall(r"^PA\(NF\) +([\d.]+)%", shown[-1], re.MULTILINE))
    assert own > of_all + 15  # the module made for this chip, and the one made for all
    record = json.loads((tmp_path / "chip.json").read_text())
    assert record["chips"] == 1
    assert record["ber"] == made.rate(0.68)
    for name in ("chip.png", "report.png"):
        assert (tmp_path / name).stat().st_size > 20_000
