"""Several processes that train together do what one does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.commands import child_environment, torchrun
from helpers.models import SmallNet
from helpers.places import ROOT
from neuralfuse.config import EopmConfig
from neuralfuse.errors import ConfigError
from neuralfuse.faults import Stuck
from neuralfuse.files import read_tensors
from neuralfuse.memory import deploy
from neuralfuse.nets.base import seeded
from neuralfuse.train import ALONE, Pass, Ranks, eopm_backward, passes
from neuralfuse.train.gradient import own_share


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


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Path:
    """What one, two and four processes made of the same twenty steps."""
    folder, worker = tmp_path_factory.mktemp("jobs"), str(ROOT / "tests" / "ranks_worker.py")
    for count in (1, 2, 4):
        command = torchrun(count, worker, str(folder))
        subprocess.run(command, env=child_environment(), check=True, capture_output=True, timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["split", "crossed"])
def test_one_two_and_four_processes_take_the_same_twenty_steps(estimator, jobs):
    made = {path.stem: read_tensors(path)[0] for path in jobs.glob(f"{estimator}-*.safetensors")}
    told = {path.stem: json.loads(path.read_text()) for path in jobs.glob(f"{estimator}-*.json")}
    first, *others = (f"{estimator}-{name}" for name in ("1-0", "2-0", "2-1", "4-0", "4-1", "4-2", "4-3"))
    assert made.keys() == told.keys() == {first, *others}
    wanted, kept = made[first], told[first]
    assert len(kept["losses"]) == 20 and len(kept["history"]) == 3
    for name in others:
        for key, tensor in wanted.items():
            torch.testing.assert_close(
                made[name][key], tensor, rtol=1e-8, atol=1e-10, msg=lambda m, k=key, n=name: f"{n} {k}: {m}"
            )
        assert told[name]["history"] == kept["history"]
        for step, other in zip(told[name]["losses"], kept["losses"], strict=True):
            assert step == pytest.approx(other, rel=1e-9)
    for one, other in (("2-0", "2-1"), ("4-0", "4-3")):
        ours, theirs = made[f"{estimator}-{one}"], made[f"{estimator}-{other}"]
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_only_training_is_shared(capsys, monkeypatch):
    from neuralfuse.cli.main import run

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["models"]) == 0  # whoever else sets it
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert run(["evaluate", "--base", "x", "--ber", "0.1"]) == 2
    assert "torchrun must start neuralfuse train: got 'evaluate'" in capsys.readouterr().err
