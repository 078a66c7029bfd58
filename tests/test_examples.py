"""The examples do what they say, in as few lines as they say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from helpers.commands import shell
from helpers.places import ROOT

pytestmark = pytest.mark.slow


def code_lines(example: Path) -> int:
    """Lines of a program but its docstring, comments and empty lines."""
    code = example.read_text(encoding="utf-8").split('"""')[2]
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in code.splitlines())


def test_the_example_recovers_a_model_of_one_s_own(tmp_path):
    pytest.importorskip("timm")
    example = ROOT / "examples" / "own_model.py"
    assert code_lines(example) <= 12
    seeded = f"import runpy, torch; torch.manual_seed(0); runpy.run_path({str(example)!r})"
    done = shell(f"python -c {shlex.quote(seeded)}", tmp_path)
    values = dict(re.findall(r"^(CA|PA|CA\(NF\)|PA\(NF\)) +([\d.]+)%", done.stdout, re.MULTILINE))
    ca, pa, ca_nf, pa_nf = (float(values[name]) for name in ("CA", "PA", "CA(NF)", "PA(NF)"))
    assert pa < ca - 10
    assert pa_nf > pa + 15
    assert ca_nf > ca - 5
    assert (tmp_path / "my-fuse" / "config.json").exists()


def test_the_example_trains_a_generator_of_one_s_own(tmp_path):
    pytest.importorskip("onnxruntime")
    shell(f"python {ROOT / 'examples' / 'own_generator.py'}", tmp_path)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["config"]["fuse"]["generator"] == "own_generator:patches"
    assert record["rp_ci95"][0] > 5
    assert (tmp_path / "fuse.onnx").stat().st_size > 1000 and (tmp_path / "protected.npy").exists()


def test_the_example_compares_a_method_of_one_s_own(tmp_path):
    example = ROOT / "examples" / "own_method.py"
    assert len(example.read_text().splitlines()) <= 40
    done = shell(f"python {example}", tmp_path)
    rows = [line for line in done.stdout.splitlines() if line.startswith("own_method:Shifts ")]
    assert len(rows) == 2  # one for each meaning of the rate
    assert len(list((tmp_path / "reproduce").glob("comparison-vgg11-tiny-digits-*.json"))) == 1
