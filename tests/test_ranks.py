"""Several processes that train together do what one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import ROOT, SmallNet, child_environment
from neuralfuse.config import EopmConfig
from neuralfuse.errors import ConfigError
from neuralfuse.faults import Stuck
from neuralfuse.files import read_tensors
from neuralfuse.memory import deploy
from neuralfuse.nets.base import seeded
from neuralfuse.train import ALONE, Pass, Ranks, eopm_backward, passes
from neuralfuse.train.gradient import own_share

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("estimator", ["split", "crossed"])
def test_processes_share_all_passes_equally(size, estimator):
    config = EopmConfig(n_chips=3, estimator=estimator)
    plan = [Pass(None, torch.arange(10)), *passes(config, Stuck(ber=0.1), 10, 0)]
    shares = [own_share(plan, Ranks(rank, size)) for rank in range(size)]
    counts = [sum(len(one.rows) for one in share) for share in shares]
    assert max(counts) - min(counts) <= 1

    def taken(passes_: list[Pass]) -> list[tuple[int | None, int]]:
        return [(one.chip and one.chip.seed, row) for one in passes_ for row in one.rows.tolist()]

    assert taken(plan) == [pair for share in shares for pair in taken(share)]


class Partial(Ranks):
    """A process whose sums stay its own."""

    def total(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("estimator", ["split", "crossed"])
def test_the_processes_gradients_add_up_to_the_whole(size, estimator):
    draw = torch.Generator().manual_seed(3)
    base = deploy(seeded(SmallNet, 5).eval().double())
    x = torch.randn(11, 1, 8, 8, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 5, (11,), generator=draw)
    plan = passes(EopmConfig(n_chips=4, estimator=estimator), Stuck(ber=0.05), 11, 0)

    def run(ranks: Ranks) -> Tensor:
        leaf = x.clone().requires_grad_()
        losses = eopm_backward(base, leaf, labels, plan, lam=5.0, ranks=ranks)
        return torch.cat([leaf.grad.flatten(), torch.tensor(losses, dtype=torch.float64)])

    parts = sum(run(Partial(rank, size)) for rank in range(size))
    torch.testing.assert_close(parts, run(ALONE), rtol=1e-10, atol=1e-14)


def test_processes_that_stand_elsewhere_are_told(monkeypatch):
    two = Ranks(0, 2)
    monkeypatch.setattr(two, "total", lambda values: values + torch.tensor([0, 7]))
    with pytest.raises(ConfigError, match=r"must have the same step: got \[3, 7\]"):
        two.check_equal(3, torch.device("cpu"), "step")


def torchrun(count: int, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    return [*TORCHRUN, str(count), *options, *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["split", "crossed"])
def test_one_two_and_four_processes_take_the_same_twenty_steps(estimator, tmp_path):
    worker = str(ROOT / "tests" / "ranks_worker.py")
    for count in (1, 2, 4):
        command = torchrun(count, worker, str(tmp_path), estimator)
        subprocess.run(command, env=child_environment(), check=True, capture_output=True, timeout=300)
    wanted, _ = read_tensors(tmp_path / "1-0.safetensors")
    kept = json.loads((tmp_path / "1-0.json").read_text())
    assert len(kept["losses"]) == 20 and len(kept["history"]) == 3
    for name in ("2-0", "2-1", "4-0", "4-1", "4-2", "4-3"):
        got, _ = read_tensors(tmp_path / f"{name}.safetensors")
        for key, tensor in wanted.items():
            torch.testing.assert_close(
                got[key], tensor, rtol=1e-8, atol=1e-10, msg=lambda m, k=key, n=name: f"{n} {k}: {m}"
            )
        own = json.loads((tmp_path / f"{name}.json").read_text())
        assert own["history"] == kept["history"]
        for step, other in zip(own["losses"], kept["losses"], strict=True):
            assert step == pytest.approx(other, rel=1e-9)
    for first, second in (("2-0", "2-1"), ("4-0", "4-3")):
        ours, theirs = (read_tensors(tmp_path / f"{name}.safetensors")[0] for name in (first, second))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def workers_of(torchrun_pid: int) -> list[int]:
    shown = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(torchrun_pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in shown.stdout.split()]


@pytest.mark.slow
def test_a_job_goes_on_from_its_checkpoint_when_a_process_is_killed(tmp_path):
    """One of two processes is killed once there is a checkpoint; torchrun starts both again, to the same end."""
    neuralfuse = [str(Path(sys.executable).with_name("neuralfuse"))]
    environment = child_environment()
    base = str(tmp_path / "base")
    train = [*neuralfuse, "train-base", "--base", "resnet8", "--epochs", "2", "--batch", "64", "--out", base]
    subprocess.run(train, env=environment, check=True, capture_output=True, timeout=300)
    train = [*neuralfuse, "train", "--base", base, "--generator", "unets", "--ber", "0.05", "--n-chips", "2"]
    train += ["--epochs", "6", "--batch", "64", "--validate-every", "10", "--validation-chips", "2", "--json"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = torchrun(2, *train, "--out", str(whole), options=("--no-python",))
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
    record = json.loads(done.stdout)
    assert record["run"]["processes"] == 2

    command = torchrun(2, *train, "--out", str(cut), options=("--no-python", "--max-restarts", "1"))
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (cut / "checkpoint.safetensors").exists():
            assert job.poll() is None, job.communicate()
            time.sleep(0.02)
        os.kill(workers_of(job.pid)[-1], signal.SIGKILL)
        shown, errors = job.communicate(timeout=300)
    finally:
        job.kill()
    assert job.returncode == 0, errors
    again = json.loads(shown)
    assert not (cut / "model.safetensors.tmp").exists()
    ours, theirs = (read_tensors(folder / "model.safetensors")[0] for folder in (whole, cut))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again["history"] == record["history"]


def test_only_training_is_shared(capsys, monkeypatch):
    from neuralfuse.cli.main import run

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["models"]) == 0  # whoever else sets it
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert run(["evaluate", "--base", "x", "--ber", "0.1"]) == 2
    assert "torchrun must start neuralfuse train: got 'evaluate'" in capsys.readouterr().err
