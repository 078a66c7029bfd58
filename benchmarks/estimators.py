"""Which way of spending base-model passes trains NeuralFuse best, on the digits: the figures of ADR 7.

    python benchmarks/estimators.py --out results/estimators.json            # goes on where it was stopped
    python benchmarks/estimators.py --out results/estimators.json --time     # seconds; needs an idle machine
    python benchmarks/estimators.py --out results/estimators.json --report   # tables and picture of what is there

Each run trains from scratch with one way, in one setting (a base model and a fault model), under one seed, until it has
spent a number of image passes through the base model, and is then measured on test images and chips never trained on.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timing import machine, median, table
from torch import Tensor, nn
from torch.nn import functional as F

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import DataSet, augmentation, load_data
from neuralfuse.evaluation import evaluate
from neuralfuse.evaluation.stats import mean, t_interval
from neuralfuse.faults import Chip, FaultModel, FaultyCells, Layout, Stuck, fault_model
from neuralfuse.files import read_json, write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed, deploy
from neuralfuse.nets import base_model
from neuralfuse.nets.base import seeded
from neuralfuse.quant import Scheme, quantized_call, snap_
from neuralfuse.seeds import generator
from neuralfuse.train import Pass, eopm_backward, passes, train_base
from neuralfuse.train.average import Average

SCHEMA = "neuralfuse/estimators/1"
BATCH, LR, LAM = 128, 4e-3, 5.0
BER = {"stuck": 0.06, "reference": 0.03}


class SmallVgg(nn.Sequential):
    """Four convolutions and a linear layer, for images of 8x8 pixels."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((1, 32, 32, 64, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if after == before else []
        super().__init__(*layers, nn.Flatten(), nn.Linear(256, 10))


@dataclass(frozen=True)
class Way:
    """One way to spend passes."""

    estimator: str = "split"
    n: int = 10
    mirrored: bool = False  # every second chip has the cells of the one before it, stuck at the other value
    rates: tuple[float, float] = (1.0, 1.0)  # each chip's rate, as a share of the nominal one, drawn evenly
    ramp: float = 0.0  # share of the run over which the rate rises from a quarter
    average: float = 0.0  # of the weights over steps: the decay of an exponential moving average
    soft: float = 0.0  # share of the targets that comes from the clean model on the plain images
    schedule: str = "cosine"


USUAL = Way()
ESTIMATORS = {
    **{f"split, N = {n}": replace(USUAL, n=n) for n in (1, 4, 10, 20)},
    **{f"crossed, N = {n}": Way("crossed", n) for n in (1, 4, 10)},
}
IDEAS = {
    "mirrored chips": replace(USUAL, mirrored=True),
    "rates of 0.5 to 1.5": replace(USUAL, rates=(0.5, 1.5)),
    "rates of 1 to 1.5": replace(USUAL, rates=(1.0, 1.5)),
    "rate rising over the first half": replace(USUAL, ramp=0.5),
    "average of weights, 0.98": replace(USUAL, average=0.98),
    "half soft targets": replace(USUAL, soft=0.5),
    "constant learning rate": replace(USUAL, schedule="constant"),
    "constant, average 0.98": replace(USUAL, schedule="constant", average=0.98),
    "constant, average 0.99": replace(USUAL, schedule="constant", average=0.99),
}


BEST = "constant, average 0.98"
SHOWN = [*ESTIMATORS, BEST]  # in the picture


@dataclass(frozen=True, kw_only=True)
class Mirrored(Stuck):
    """`Stuck` cells, at the other value."""

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return them."""
        found = super().cells(layout, seed, device, read=read)
        return FaultyCells(found.cell, found.keeps, ~found.flips)


@dataclass
class Setting:
    """A base model in faulty memory, and the images."""

    base: Deployed
    faults: FaultModel
    data: DataSet
    pa: float = field(default=0.0)


def plan_of(way: Way, faults: FaultModel, config: EopmConfig, count: int, step: int, done: float) -> list[Pass]:
    """Return the perturbed passes of a step; ``done`` is the share of the run that lies behind it."""
    draw = generator(config.seed, "rates", step)
    plan = []
    for k, one in enumerate(passes(config, faults, count, step)):
        low, high = way.rates
        share = low + (high - low) * float(torch.rand((), generator=draw))
        if way.ramp:
            share *= min(1.0, 0.25 + 0.75 * done / way.ramp)
        chip = Chip(faults.at(share * faults.ber), one.chip.seed)
        if way.mirrored and k % 2:
            chip = Chip(Mirrored(ber=faults.ber), plan[-1].chip.seed)
        plan.append(Pass(chip, one.rows))
    return plan


def train(way: Way, setting: Setting, seed: int, budget: int) -> tuple[NeuralFuse, float]:
    """Train until ``budget`` image passes are spent; return the module in eval mode, and the seconds it took."""
    base, data = setting.base, setting.data
    config = EopmConfig(n_chips=way.n, estimator=way.estimator, schedule=way.schedule, lr=LR, seed=seed)
    fuse = NeuralFuse("unets", channels=1, image_size=data.image_size, seed=seed).train()
    optimizer = torch.optim.Adam(fuse.parameters(), lr=LR, betas=(0.5, 0.999))
    average = Average(fuse, way.average)
    augment = augmentation("auto", data.name)
    total = budget // (BATCH * (2 if way.estimator == "split" else 1 + way.n))
    started = time.perf_counter()
    for step in range(total):
        rows = torch.randint(0, len(data.train), (BATCH,), generator=generator(seed, "rows", step))
        labels: Tensor = data.train.labels[rows]
        x = fuse.input_range.from_pixels(augment(data.train.images[rows], generator(seed, "augment", step)))
        if way.soft:
            with torch.no_grad():
                soft = base(x).softmax(1)
            labels = (1 - way.soft) * F.one_hot(labels, 10) + way.soft * soft
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step, total)
        optimizer.zero_grad()
        output = quantized_call(fuse, x, Scheme())
        leaf = output.detach().requires_grad_()
        eopm_backward(base, leaf, labels, plan_of(way, setting.faults, config, BATCH, step, step / total), lam=LAM)
        output.backward(leaf.grad)
        optimizer.step()
        average.update(fuse, step + 1)
    taken = time.perf_counter() - started
    if way.average:
        fuse.load_state_dict(average.tensors)
    fuse.eval()
    snap_(fuse, Scheme())
    return fuse, taken


def settings(chips: int) -> dict[str, Setting]:
    """Return two base models in two kinds of faulty memory."""
    data = load_data("digits")
    models = {
        "resnet8": base_model("resnet8", classes=10, channels=1, image_size=data.image_size, seed=0),
        "vgg": seeded(SmallVgg, 0),
    }
    found = {}
    for name, model in models.items():
        train_base(model, data, QatConfig(epochs=12, batch=64, lr=0.1 if name == "resnet8" else 0.05))
        for kind, ber in BER.items():
            setting = Setting(deploy(model), fault_model(kind, ber=ber), data)
            setting.pa = evaluate(setting.base, data.test, setting.faults.chips(chips)).pa
            found[f"{name}, {kind} {100 * ber:g}%"] = setting
    return found


def todo(budgets: list[int], seeds: list[int], ways: list[str]) -> Iterator[tuple[str, Way, int, int]]:
    """Yield (name, way, seed, budget), one seed after the other, so that a stop leaves comparable runs.

    Ideas are tried at the largest budget, unless ``ways`` names what to run.
    """
    for seed, budget in itertools.product(seeds, budgets):
        for name, way in {**ESTIMATORS, **IDEAS}.items():
            if name in ways or (not ways and (name in ESTIMATORS or budget == budgets[-1])):
                yield name, way, seed, budget


def measure(out: Path, budgets: list[int], seeds: list[int], chips: int, ways: list[str]) -> None:
    """Run what is missing, keeping each result as it comes."""
    record: dict[str, Any] = read_json(out, SCHEMA) if out.exists() else {"schema": SCHEMA, "runs": []}
    known = {(run["way"], run["setting"], run["seed"], run["budget"]) for run in record["runs"]}
    all_settings = settings(chips)
    record["pa"] = {name: setting.pa for name, setting in all_settings.items()}
    record["machine"] = machine(torch.device("cpu"))
    print(record["pa"], flush=True)
    for name, way, seed, budget in todo(budgets, seeds, ways):
        for place, setting in all_settings.items():
            mirrored = way.mirrored and not isinstance(setting.faults, Stuck)
            if (name, place, seed, budget) in known or mirrored:
                continue
            fuse, _ = train(way, setting, seed, budget)
            result = evaluate(setting.base, setting.data.test, setting.faults.chips(chips), fuse=fuse)
            run = {"way": name, **asdict(way), "setting": place, "seed": seed, "budget": budget}
            run |= {"ca_nf": result.ca_nf, "pa_nf": result.pa_nf}
            record["runs"].append(run)
            write_json(out, record)
            print(f"{name}, {place}, seed {seed}, {budget}: {result.pa_nf:.2f}", flush=True)


def time_ways(out: Path, chips: int, rounds: int = 2, budget: int = 7_680) -> None:
    """Time the ways that are drawn, in turn, and keep the seconds for a thousand image passes."""
    record = read_json(out, SCHEMA)
    taken: dict[str, dict[str, list[float]]] = {}
    for _, (place, setting) in itertools.product(range(rounds), settings(chips).items()):
        for name in SHOWN:
            _, seconds = train({**ESTIMATORS, **IDEAS}[name], setting, 99, budget)
            taken.setdefault(name, {}).setdefault(place, []).append(1000 * seconds / budget)
    record["seconds"] = {
        name: {place: round(median(values), 4) for place, values in own.items()} for name, own in taken.items()
    }
    write_json(out, record)


def differences(runs: list[dict[str, Any]], way: str, usual: str, budget: int, what: str = "pa_nf") -> list[float]:
    """Return one way's result less the usual way's, for each setting and seed that both have."""
    found = {(run["way"], run["setting"], run["seed"]): run[what] for run in runs if run["budget"] == budget}
    pairs = [(place, seed) for name, place, seed in found if name == way and (usual, place, seed) in found]
    return [found[way, *pair] - found[usual, *pair] for pair in pairs]


def report(out: Path, picture: Path | None) -> None:
    """Print the tables, and draw the picture."""
    record = read_json(out, SCHEMA)
    runs, usual = record["runs"], "split, N = 10"
    budgets = sorted({run["budget"] for run in runs})
    for names in (ESTIMATORS, IDEAS):
        rows = []
        for budget, name in itertools.product(budgets, names):
            own = [run for run in runs if (run["way"], run["budget"]) == (name, budget)]
            if not own:
                continue
            values = differences(runs, name, usual, budget)
            low, high = t_interval(values) or (float("nan"),) * 2
            times = [budget / 1000 * value for value in record.get("seconds", {}).get(name, {}).values()]
            rows.append(
                [
                    name,
                    f"{budget:,}",
                    f"{mean(times):.1f} s" if times else "",
                    f"{mean([run['pa_nf'] for run in own]):.2f}",
                    f"{mean(values):+.2f}",
                    "" if name == usual else f"{low:+.2f} to {high:+.2f}",
                    f"{mean(differences(runs, name, usual, budget, 'ca_nf')):+.2f}",
                    str(len(values)),
                ]
            )
        beside = (f"beside {usual}", "95% interval", "CA(NF) beside it", "runs")
        head = ["way", "image passes", "on one core", "PA(NF)", *beside]
        print(table(head, rows) + "\n")
    if picture is not None:
        draw(record, picture)


def draw(record: dict[str, Any], picture: Path) -> None:
    """Draw PA(NF) against the time it takes on one core, one panel a setting."""
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import NullFormatter, ScalarFormatter  # noqa: PLC0415

    runs, places = record["runs"], sorted({run["setting"] for run in record["runs"]})
    figure = Figure(figsize=(3.3 * len(places), 4.0), layout="constrained")
    panels = figure.subplots(1, len(places), sharey=True)
    blues, reds = colormaps["Blues"], colormaps["Oranges"]
    shades = {"split": iter(blues([0.35, 0.5, 0.75, 0.95])), "crossed": iter(reds([0.4, 0.6, 0.85]))}
    colors = {name: next(shades[way.estimator]) for name, way in ESTIMATORS.items()} | {BEST: "black"}
    for panel, place in zip(panels, places, strict=True):
        for name in SHOWN:
            points = []
            for budget in sorted({run["budget"] for run in runs}):
                own = [
                    run["pa_nf"] for run in runs if (run["way"], run["setting"], run["budget"]) == (name, place, budget)
                ]
                if own:
                    points.append((budget / 1000 * record["seconds"][name][place], mean(own)))
            panel.plot(*zip(*points, strict=True), "-o", color=colors[name], label=name, markersize=4, linewidth=1.6)
        panel.axhline(record["pa"][place], color="grey", linewidth=1, linestyle=":")
        panel.annotate(
            "no NeuralFuse",
            (0.03, record["pa"][place] + 0.4),
            color="grey",
            fontsize=8,
            xycoords=panel.get_yaxis_transform(),
        )
        panel.set(xlabel="seconds on one core", xscale="log")
        panel.set_title(place, fontsize=10)
        panel.set_xticks([5, 10, 20, 50, 100])
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#ececec", linewidth=0.8)
    panels[0].set_ylabel("PA(NF) on unseen chips [%]")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SHOWN), fontsize=8, frameon=False
    )
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Measure or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--budgets", type=int, nargs="+", default=[25_600, 102_400])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=[], help="only these, at every budget")
    parser.add_argument("--chips", type=int, default=20, help="unseen chips of each measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.time:
        time_ways(options.out, options.chips)
    elif not options.report:
        measure(options.out, options.budgets, options.seeds, options.chips, options.ways)
    report(options.out, options.picture)


if __name__ == "__main__":
    main()
