"""One process of a job that `test_ranks.py` starts: trains in float64, by either estimator, and writes the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from helpers.models import SmallNet
from helpers.toy import toy_data
from neuralfuse.config import EopmConfig
from neuralfuse.faults import Stuck
from neuralfuse.files import write_tensors
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets.base import seeded
from neuralfuse.train import Ranks, train_fuse


class Steps:
    """Keeps every step's losses."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def stepped(self, step, total, losses):
        self.losses.append(dict(losses))

    def validated(self, step, metrics):
        pass

    def close(self):
        pass


def job(ranks: Ranks, estimator: str) -> tuple[NeuralFuse, list[dict[str, float]], list[dict[str, float]]]:
    """Take twenty steps against two base models; return the module, its losses and its validations."""
    data = toy_data()
    bases = [deploy(seeded(SmallNet, seed).eval().double()) for seed in (5, 6)]
    fuse = NeuralFuse("convs", channels=1, image_size=(8, 8), seed=0).double()
    config = EopmConfig(
        n_chips=3,
        estimator=estimator,
        batch=9,
        epochs=2,
        validate_every=7,
        validation_chips=3,
        average=0.5,
    )
    steps = Steps()
    state = train_fuse(fuse, bases, data, config, faults=Stuck(ber=0.05), listeners=[steps], ranks=ranks)
    return fuse, steps.losses, state.history


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = Ranks.from_torchrun(torch.device("cpu"))
    for estimator in ("split", "crossed"):
        fuse, losses, history = job(ranks, estimator)
        path = Path(sys.argv[1]) / f"{estimator}-{ranks.size}-{ranks.rank}.safetensors"
        write_tensors(path, dict(fuse.state_dict()), {})
        path.with_suffix(".json").write_text(json.dumps({"losses": losses, "history": history}))
