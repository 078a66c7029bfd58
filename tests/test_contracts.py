"""The slow contracts of `make check`: the demo, the README's commands, the example, and runs that are killed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, child_environment
from neuralfuse import published
from neuralfuse.faults import FaultMap
from neuralfuse.files import read_tensors

pytestmark = pytest.mark.slow
NEURALFUSE = str(Path(sys.executable).with_name("neuralfuse"))


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env={**os.environ, "COLUMNS": "200", "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_demo_recovers(tmp_path):
    done = shell("neuralfuse demo --out demo --json", tmp_path)
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "demo" / "results.json").read_text())
    assert record["schema"] == "neuralfuse/evaluation/1"
    assert record["seconds"] > 0
    assert record["pa"] < 70
    assert record["rp"] >= 15
    assert record["rp_ci95"][0] > 0
    assert record["ca"] - record["ca_nf"] <= 3
    assert record["chips"] == 30
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert made == {"results.json", "accuracy.png", "base", "fuse"}
    assert (tmp_path / "demo" / "fuse" / "model.safetensors").exists()


def blocks(page: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_s_commands_run(tmp_path):
    """Every command of the README but the installation itself, in one folder, in order."""
    commands = [
        line
        for block in blocks("README.md")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith(("neuralfuse ", "python ", "torchrun "))
    ]
    assert len(commands) >= 5
    for command in commands:
        shell(command, tmp_path)
    record = json.loads((tmp_path / "runs" / "record.json").read_text())
    assert record["rp"] > 0
    plan = json.loads((tmp_path / "runs" / "plan" / "plan.json").read_text())
    assert plan["choice"] is not None and plan["check"]["meets_target"]


def test_the_readme_s_python_runs(tmp_path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    for block in code:
        (tmp_path / "block.py").write_text(block)
        shell("python block.py", tmp_path)


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


def test_the_page_for_a_chip_of_one_s_own_runs(tmp_path):
    """Its commands in order, from made-up measurements to both pictures."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks("docs/your-chip.md"):
        done = shell(block, tmp_path)
    assert "RP" in done.stdout
    made = FaultMap.load(tmp_path / "chip.npz")
    assert made.synthetic
    assert made.voltages == (0.72, 0.7, 0.68, 0.66)
    assert made.recovered() == 0
    of_all, own = (float(value) for value in re.findall(r"^PA\(NF\) +([\d.]+)%", done.stdout, re.MULTILINE))
    assert own > of_all + 15  # the module made for this chip, and the one made for all
    record = json.loads((tmp_path / "chip.json").read_text())
    assert record["chips"] == 1
    assert record["ber"] == made.rate(0.68)
    for name in ("chip.png", "report.png"):
        assert (tmp_path / name).stat().st_size > 20_000


@pytest.mark.parametrize(
    "command",
    [
        "memory.py --base resnet8 --rounds 2",
        "step.py step evaluation latency --base resnet8 --rounds 2 --batches 4 --chips 2 --images 64",
        "heap.py --base vgg11-tiny resnet8 vgg11-quarter --rounds 1",
        "recovery.py --small --epochs 3 --out recovery",
        f"estimators.py --out {ROOT / 'results' / 'estimators.json'} --report --picture curves.png",
    ],
)
def test_the_benchmarks_run(command, tmp_path):
    done = shell(f"python {ROOT / 'benchmarks'}/{command}", tmp_path)
    assert done.stdout.count("| ") > 20


def test_the_study_s_tables_are_made_from_its_record(tmp_path):
    record = ROOT / "results" / "estimators.json"
    done = shell(f"python {ROOT / 'benchmarks'}/estimators.py --out {record} --report", tmp_path)
    page = next((ROOT / "docs" / "adr").glob("0007-*.md")).read_text(encoding="utf-8")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert [line for line in page.splitlines() if line.startswith("| ")] == rows


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


def test_linked_pages_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page}: {link}"


BASE = "train-base --base resnet8 --data digits --epochs 6 --batch 64 --validate-every 7 --threads 1"
FUSE = (
    "train --base {base} --generator unets --ber 0.05 --epochs 9 --validate-every 5 --n-chips 2 "
    "--validation-chips 1 --threads 1"
)


def killed_until_done(arguments: list[str], out: Path, seed: int) -> int:
    """Start a command again and again, killing it soon after each first checkpoint; return the kills."""
    chance, kills = random.Random(seed), 0
    while True:
        child = subprocess.Popen(
            [NEURALFUSE, *arguments, "--out", str(out), "--resume"],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=child_environment(),
        )  # fmt: skip
        before = _written(out)
        while kills < 4 and child.poll() is None and _written(out) == before:
            time.sleep(0.01)
        if kills < 4:
            time.sleep(chance.uniform(0, 0.6))
        if kills == 4 or child.poll() is not None:
            assert child.wait() == 0
            return kills
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1


def _written(out: Path) -> float:
    path = out / "checkpoint.safetensors"
    return path.stat().st_mtime if path.exists() else 0.0


def test_runs_killed_at_random_end_as_if_undisturbed(tmp_path):
    subprocess.run([NEURALFUSE, *BASE.split(), "--out", str(tmp_path / "base")], check=True, env=child_environment())
    fuse = FUSE.format(base=tmp_path / "base").split()
    subprocess.run([NEURALFUSE, *fuse, "--out", str(tmp_path / "fuse")], check=True, env=child_environment())
    kills = killed_until_done(BASE.split(), tmp_path / "base-killed", seed=1)
    kills += killed_until_done(fuse, tmp_path / "fuse-killed", seed=2)
    assert kills >= 2
    for name in ("base", "fuse"):
        whole, _ = read_tensors(tmp_path / name / "model.safetensors")
        again, _ = read_tensors(tmp_path / f"{name}-killed" / "model.safetensors")
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole)
        left = {path.name for path in (tmp_path / f"{name}-killed").iterdir() if not path.name.startswith(".")}
        assert left == {path.name for path in (tmp_path / name).iterdir()}


def test_ctrl_c_leaves_with_130_and_one_line(tmp_path):
    command = [NEURALFUSE, *BASE.replace("--epochs 6", "--epochs 400").split(), "--out", str(tmp_path)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    child = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    signal.signal(signal.SIGINT, before)
    assert child.stderr is not None
    for line in child.stderr:
        if "score" in line:
            break
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    assert err.splitlines()[-1].startswith("neuralfuse: interrupted. The same command with --resume")
    assert "Traceback" not in err


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
