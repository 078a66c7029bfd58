"""How long a chip takes, beside a dense mask and the reference's procedure: ``python benchmarks/memory.py``.

All of them fault the same model in the same run, in turn, so that the ratios hold on a busy machine too. Prints the
table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from itertools import count

import torch
from reference import BITS, fault_masks, faulted
from timing import Way, common_options, in_turn, machine, median, table
from torch import Tensor

from neuralfuse.faults import Chip, FaultModel, fault_model
from neuralfuse.memory import Deployed, deploy
from neuralfuse.nets import base_model

Load = dict[str, Tensor]


def dense_mask(base: Deployed, ber: float, seed: int) -> Load:
    """Fault a model by one random number for each cell: the obvious way."""
    draw = torch.Generator().manual_seed(seed)
    out = {}
    for one in base.memory.stored:
        codes = base.memory.codes_of(one.name)
        faulty = torch.rand(*codes.shape, BITS, generator=draw) < ber
        ones = torch.rand(*codes.shape, BITS, generator=draw) < 0.5
        place = 2 ** torch.arange(BITS)
        lost, set_ = (faulty * place).sum(-1), ((faulty & ones) * place).sum(-1)
        read = ((codes.long() & 0xFF) & ~lost) | set_
        out[one.name] = ((read ^ 0x80) - 0x80).float() * (one.tensor.abs().max() / 127)
    return out


def reference_procedure(base: Deployed, ber: float, seed: int) -> Load:
    """Fault a model as the NeuralFuse reference does: a map of 8192 x 128 cells, tiled and laid over each layer."""
    masks = fault_masks(ber, seed)
    return {
        one.name: faulted(base.memory.codes_of(one.name), masks).float() * (one.tensor.abs().max() / 127)
        for one in base.memory.stored
    }


def measure(base: Deployed, faults: FaultModel, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way."""
    device = base.memory.device
    base(torch.zeros(2, 3, 32, 32, device=device))  # decides how it runs
    seeds = count()
    made = [base.perturbed(Chip(faults, next(seeds))) for _ in range(2)]
    values = base.memory.values
    room = torch.empty_like(values)

    def new_chip() -> None:
        base.weights_through(base.perturbed(Chip(faults, next(seeds))))

    def switch() -> None:
        made.reverse()
        base.weights_through(made[0])

    ways: dict[str, Way] = {
        "a new chip, ready to run": new_chip,
        "switching between two chips": switch,
        "floor: a copy of the float weights": lambda: room.copy_(values),
    }
    if device.type == "cpu":
        ways["the reference's procedure, a new chip"] = lambda: reference_procedure(base, faults.ber, next(seeds))
        ways["a dense mask, a new chip"] = lambda: dense_mask(base, faults.ber, next(seeds))
    return in_turn(ways, device, rounds, least=0.3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_options(parser, rounds=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = deploy(base_model(options.base, classes=10, channels=3, image_size=(32, 32), seed=0).to(options.device))
    taken = measure(base, fault_model(options.faults, ber=options.ber), options.rounds)
    ours = median(taken["a new chip, ready to run"])
    rows = [
        [name, f"{1000 * min(values):.1f}", f"{1000 * median(values):.1f}", f"{median(values) / ours:.2f}"]
        for name, values in taken.items()
    ]
    print(
        f"{options.base}, {base.memory.layout.words:,} words of {BITS} bits, {100 * options.ber:g}% {options.faults}, "
        f"{options.rounds} rounds; {machine(options.device)}\n"
    )
    print(table(["what", "best [ms]", "median [ms]", "beside a new chip (medians)"], rows))


if __name__ == "__main__":
    main()
