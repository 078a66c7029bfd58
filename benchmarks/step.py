"""How long training and evaluation take, beside the reference's way and the arithmetic's floor.

    python benchmarks/step.py                      # all of it
    python benchmarks/step.py step evaluation      # some of it: step, evaluation, scaling, processes, latency
    python benchmarks/step.py --device cuda

Ways are timed in turn within one run; the floor is the operations of convolutions and matrix products over the rate of
this machine's float32 matrix products, measured in the same run. Prints the tables of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from itertools import count
from types import SimpleNamespace

import torch
from reference import ReferenceStep
from timing import Way, common_options, in_turn, machine, matmul_rate, median, operations, shown, table
from torch import Tensor, nn
from torch.nn import functional as F

from neuralfuse.config import EopmConfig, Running
from neuralfuse.data import Split
from neuralfuse.evaluation import evaluate
from neuralfuse.faults import Chip, FaultModel, fault_model
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed, deploy, side_by_side
from neuralfuse.nets import GENERATORS, base_model
from neuralfuse.quant import Scheme, quantized_call
from neuralfuse.train import ALONE, Ranks, eopm_backward, passes

Row = list[str]


class OurStep:
    """One training step, as `train_fuse` takes it: the generator, the base model's passes, the optimizer."""

    def __init__(
        self, base: Deployed, faults: FaultModel, config: EopmConfig, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.base, self.faults, self.config, self.ranks = base, faults, config, ranks
        self.fuse = NeuralFuse("convl", seed=0).to(device).train()
        self.optimizer = torch.optim.Adam(self.fuse.parameters(), lr=1e-3, betas=(0.5, 0.999))
        self.steps = count()

    def __call__(self, x: Tensor, labels: Tensor) -> None:
        """Take one step on a mini-batch."""
        self.optimizer.zero_grad()
        output = quantized_call(self.fuse, x, Scheme())
        leaf = output.detach().requires_grad_()
        plan = passes(self.config, self.faults, len(x), next(self.steps))
        eopm_backward(self.base, leaf, labels, plan, lam=5.0, ranks=self.ranks)
        output.backward(leaf.grad)
        self.optimizer.step()


class NoFaults(Deployed):
    """A deployed model whose chips have no faults, and cost nothing."""

    def __init__(self, base: Deployed) -> None:
        super().__init__(base.model, base.memory, base.input_range)

    def perturbed(self, chip: Chip) -> nn.Module:
        """Return the clean model."""
        return self

    def forward(self, x: Tensor, *, read: int | None = None) -> Tensor:
        """Return the clean model's output, whichever read it is."""
        return super().forward(x)


def batch(count_: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return made-up images and labels: how long they take does not depend on what they show."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(count_, 3, 32, 32, generator=draw) * 2 - 1
    return x.to(device), torch.randint(0, 10, (count_,), generator=draw).to(device)


def step_operations(model: nn.Module, generator: nn.Module, device: torch.device) -> tuple[float, float]:
    """Return the operations for an image: of one base pass and its gradient to the input, and of G's pass and its
    gradient to G's parameters."""
    x, labels = batch(4, device)

    def through_base() -> None:
        F.cross_entropy(model(x.clone().requires_grad_()), labels).backward()

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    base = operations(through_base) / len(x)
    for parameter in model.parameters():
        parameter.requires_grad_()
    return base, operations(lambda: generator(x).sum().backward()) / len(x)


def time_steps(options: SimpleNamespace, model: nn.Module, base: Deployed, faults: FaultModel) -> None:
    """Print our step beside the reference's and the floor, and what of a step handling faults takes."""
    device, n = options.device, options.chips
    generator = NeuralFuse("convl", seed=0).to(device)
    rate, (of_base, of_generator) = matmul_rate(device), step_operations(model, generator.generator, device)
    rows = []
    for images in options.batches:
        x, labels = batch(images, device)
        crossed, split = (
            OurStep(base, faults, EopmConfig(n_chips=n, estimator=one), device) for one in ("crossed", "split")
        )
        ways: dict[str, Way] = {"`split`": lambda: split(x, labels)}  # noqa: B023
        if images == options.batches[0]:
            reference = ReferenceStep(model, NeuralFuse("convl", seed=0).generator.to(device), ber=faults.ber, chips=n)
            ways["`crossed`"] = lambda: crossed(x, labels)  # noqa: B023
            ways["the reference's"] = lambda: reference(x, labels)  # noqa: B023
        taken = {name: median(values) for name, values in in_turn(ways, device, options.rounds, least=4.0).items()}
        floor = {"`split`": (2 * of_base + of_generator) * images / rate}
        floor["`crossed`"] = ((1 + n) * of_base + of_generator) * images / rate
        if "the reference's" in taken:
            compared = taken["the reference's"] / images
        for name, value in taken.items():
            least = shown(floor[name]) if name in floor else ""
            ratio = f"{value / floor[name]:.2f}" if name in floor else ""
            rows.append([name, str(images), shown(value), f"{compared / (value / images):.1f}", least, ratio])
    print(f"The step, N = {n}; matrix products {rate / 1e9:.0f} GFLOP/s\n")
    head = ["step", "batch", "median", "times the reference's images a second", "floor", "over the floor"]
    print(table(head, rows) + "\n")
    x, labels = batch(128, device)
    faulty, clean = (OurStep(one, faults, EopmConfig(n_chips=n), device) for one in (base, NoFaults(base)))
    taken = in_turn({"faulty": lambda: faulty(x, labels), "clean": lambda: clean(x, labels)}, device, options.rounds)
    step, without = median(taken["faulty"]), median(taken["clean"])
    print(f"A `split` step of 128 images: {shown(step)}; all passes through the clean model: {shown(without)}.")
    print(f"Handling faults takes {1 - without / step:.1%} of it.\n")


def time_evaluation(options: SimpleNamespace, model: nn.Module, base: Deployed, faults: FaultModel) -> None:
    """Print an evaluation beside as many plain passes."""
    device = options.device
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.images, 3, 32, 32), generator=draw, dtype=torch.uint8)
    split = Split(pixels.to(device), torch.randint(0, 10, (options.images,), generator=draw).to(device))
    x = base.input_range.from_bytes(split.images)
    fuse = NeuralFuse("convl", seed=0).to(device).eval()
    count_ = options.chips

    def plainly() -> None:
        with torch.inference_mode():
            torch.cat([fuse(part) for part in x.split(options.plain)])
            for _ in range(2 * count_ + 2):
                torch.cat([model(part) for part in x.split(options.plain)]).argmax(1)

    ways: dict[str, Way] = {
        "CA, PA, CA(NF), PA(NF)": lambda: evaluate(base, split, faults.chips(count_), fuse=fuse),
        f"{2 * count_ + 2} plain passes and one of G": plainly,
    }
    taken = {name: median(values) for name, values in in_turn(ways, device, max(1, options.rounds // 2)).items()}
    plain = list(taken.values())[1]
    print(f"Evaluation of {count_} chips on {options.images} images; plain passes in batches of {options.plain}\n")
    print(table(["what", "median", "ratio"], [[name, shown(one), f"{one / plain:.2f}"] for name, one in taken.items()]))
    print("\n(The evaluation also measures the model before quantization: one pass more.)\n")


def time_scaling(options: SimpleNamespace, model: nn.Module, base: Deployed, faults: FaultModel) -> None:
    """Print how a step grows with N, the batch and the threads, and what other ways to run its passes take."""
    device = options.device

    def step(n: int, images: int, estimator: str = "split", base: Deployed = base) -> Way:
        own = OurStep(base, faults, EopmConfig(n_chips=n, estimator=estimator), device)
        x, labels = batch(images, device)
        return lambda: own(x, labels)

    def row(name: str, n: int, images: int, taken: list[float], passes_: int) -> Row:
        value = median(taken)
        return [name, str(n), str(images), shown(value), shown(value / passes_)]

    rows: list[Row] = []
    ways = {("split", n, images): step(n, images) for n, images in ((1, 128), (5, 128), (10, 128), (20, 128), (10, 32))}
    ways |= {("crossed", n, 32): step(n, 32, "crossed") for n in (1, 5, 10)}
    taken = in_turn({str(key): way for key, way in ways.items()}, device, max(1, options.rounds // 2))
    for (name, n, images), values in zip(ways, taken.values(), strict=True):
        rows.append(row(f"`{name}`", n, images, values, images * (2 if name == "split" else 1 + n)))
    print("A step by N and batch\n")
    print(table(["estimator", "N", "batch", "median", "an image's base pass"], rows) + "\n")

    kinds = {"as it is": {}, "bf16": {"autocast": "bf16"}, "fp16": {"autocast": "fp16"}, "compiled": {"compile": True}}
    kinds |= {
        "channel first, not folded": {"channels_last": False, "fold": False},
        "all rows at once": {"micro_batch": 0},
    }
    others = {name: step(4, 64, base=deploy(model, running=Running(**kind))) for name, kind in kinds.items()}
    taken = in_turn(others, device, max(1, options.rounds // 2))
    usual = median(taken["as it is"])
    rows = [[name, shown(median(values)), f"{median(values) / usual:.2f}"] for name, values in taken.items()]
    print("A `split` step of 64 images, N = 4, run in other ways\n")
    print(table(["way", "median", "ratio"], rows) + "\n")
    time_many_chips(options, model, base, faults)


def time_many_chips(options: SimpleNamespace, model: nn.Module, base: Deployed, faults: FaultModel) -> None:
    """Print what one call for many chips takes (`vmap` over their weights), beside a pass for each."""
    n, device = 10, options.device
    models = [base.perturbed(Chip(faults, seed)) for seed in range(n)]
    base(batch(2, device)[0])
    plain = deploy(model, running=Running(channels_last=False, fold=False))
    plain(batch(2, device)[0])
    each = [plain.weights_through(plain.perturbed(one.chip)) for one in models]
    stacked = {name: torch.stack([weights[name] for weights in each]) for name in each[0]}
    rest = {name: one.detach() for name, one in model.named_parameters() if name not in stacked}

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, {**rest, **weights}, (x,))

    rows = []
    for images in (3, 13):
        x = batch(images * n, device)[0].reshape(n, images, 3, 32, 32)

        def vmapped(x: Tensor = x) -> None:
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(torch.func.vmap(call)(stacked, leaf).logsumexp(-1).sum(), leaf)

        def looped(pair: tuple[nn.Module, Tensor]) -> None:
            leaf = pair[1].clone().requires_grad_()
            torch.autograd.grad(pair[0](leaf).logsumexp(-1).sum(), leaf)

        ways: dict[str, Way] = {
            "one pass for each chip": lambda x=x: [looped(pair) for pair in zip(models, x, strict=True)],
            "the same, side by side": lambda x=x: list(
                side_by_side(looped, zip(models, x, strict=True), base.at_once(x[0]))
            ),
            "one call, vmap": vmapped,
        }
        taken = in_turn(ways, device, max(1, options.rounds // 2))
        rows += [[name, str(images), shown(median(values))] for name, values in taken.items()]
    print(f"{n} chips that are known already, forward and backward to the input\n")
    print(table(["way", "images a chip", "median"], rows) + "\n")


def time_processes(options: SimpleNamespace, model: nn.Module, base: Deployed, faults: FaultModel) -> None:
    """Print what a step takes when several processes share it, each with its part of the cores (or a GPU each)."""
    most = torch.cuda.device_count() if options.device.type == "cuda" else options.threads
    rows = []
    for size in (one for one in (1, 2, 4, 8) if one <= most):
        threads = str(max(1, options.threads // size))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        command = [
            sys.executable,
            *launch,
            __file__,
            "one-process",
            "--threads",
            threads,
            "--device",
            str(options.device),
        ]
        command += ["--rounds", str(max(1, options.rounds // 2)), "--base", options.base, "--faults", options.faults]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        rows.append([str(size), threads, printed.strip().splitlines()[-1]])
    print("A `split` step of 128 images, N = 10, shared by processes\n")
    print(table(["processes", "threads each", "median"], rows) + "\n")


def time_one_process(options: SimpleNamespace, model: nn.Module, base: Deployed, faults: FaultModel) -> None:
    """Print what a step takes in this process and those that torchrun started beside it."""
    ranks = Ranks.from_torchrun(options.device)
    step = OurStep(base, faults, EopmConfig(n_chips=10), options.device, ranks)
    x, labels = batch(128, options.device)
    taken = in_turn({"step": lambda: step(x, labels)}, options.device, options.rounds)["step"]
    if ranks.first:
        print(shown(median(taken)))


def time_latency(options: SimpleNamespace, model: nn.Module, base: Deployed, faults: FaultModel) -> None:
    """Print what NeuralFuse adds to an inference (the paper's Table 9)."""
    device = options.device
    rows = []
    for images in (1, 64):
        x, _ = batch(images, device)
        fuses = {name: NeuralFuse(name, seed=0).to(device).eval() for name in GENERATORS if name != "uip"}

        def run(module: nn.Module, x: Tensor = x) -> Way:
            def call() -> None:
                with torch.inference_mode():
                    module(x)

            return call

        taken = in_turn({"base": run(base), **{name: run(one) for name, one in fuses.items()}}, device, 10, least=0.05)
        alone = median(taken["base"])
        for name, values in taken.items():
            value = median(values)
            rows.append([options.base if name == "base" else name, str(images), shown(value), f"{value / alone:.2f}"])
    print("Latency of one inference\n")
    print(table(["module", "batch", "median", "beside the base model"], rows) + "\n")


SECTIONS = {
    "step": time_steps,
    "evaluation": time_evaluation,
    "scaling": time_scaling,
    "processes": time_processes,
    "latency": time_latency,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"which tables of {', '.join(SECTIONS)}; all by default")
    common_options(parser, rounds=6)
    parser.add_argument("--chips", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[25, 250])
    parser.add_argument("--images", type=int, default=256, help="test images of the evaluation")
    parser.add_argument("--plain", type=int, default=64, help="batch of the plain passes")
    options = SimpleNamespace(**vars(parser.parse_args()))
    torch.set_num_threads(options.threads)
    model = base_model(options.base, classes=10, channels=3, image_size=(32, 32), seed=0).to(options.device).eval()
    base, faults = deploy(model), fault_model(options.faults, ber=options.ber)
    if options.sections == ["one-process"]:
        time_one_process(options, model, base, faults)
        return
    print(f"{options.base} and ConvL, {100 * options.ber:g}% {options.faults}; {machine(options.device)}\n")
    for name in options.sections or SECTIONS:
        SECTIONS[name](options, model, base, faults)


if __name__ == "__main__":
    main()
