"""The slow contracts of `make check`: the README, the links of pages, and the package."""

from __future__ import annotations

import json

import pytest

from helpers.commands import followed, shell
from helpers.pages import blocks, lines
from helpers.places import ROOT

pytestmark = pytest.mark.slow


def test_the_readme_s_commands_run(tmp_path):
    """Every command of the README but the installation itself, in one folder, in order."""
    commands = [
        line
        for block in blocks("README.md")
        for line in lines(block)
        if line.startswith(("neuralfuse ", "python ", "torchrun "))
    ]
    assert len(commands) >= 5
    for command in commands:
        followed(command, tmp_path)
    record = json.loads((tmp_path / "runs" / "record.json").read_text())
    assert record["rp"] > 0
    plan = json.loads((tmp_path / "runs" / "plan" / "plan.json").read_text())
    assert plan["choice"] is not None and plan["check"]["meets_target"]


def test_the_readme_s_python_runs(tmp_path):
    code = blocks("README.md", "python")
    assert code
    for block in code:
        (tmp_path / "block.py").write_text(block)
        shell("python block.py", tmp_path)


def test_the_package_builds_with_all_it_needs(tmp_path):
    shell(f"pip wheel --quiet --no-deps --wheel-dir {tmp_path} {ROOT}", tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    names = shell(f"python -m zipfile -l {wheel}", tmp_path).stdout
    for needed in (
        "neuralfuse/report/page.html",
        "neuralfuse/data/digits.npz",
        "neuralfuse/data/DIGITS-LICENSE.md",
        "neuralfuse/py.typed",
        "LICENSE",
    ):
        assert needed in names
