"""The `compare` command: methods of protection side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neuralfuse.cli.common import Common
from neuralfuse.cli.work import Display, usual_workers
from neuralfuse.errors import require

_FLAT = Parameter(name="*")
_COMMON = Common()


def compare(
    methods: list[str] | None = None,
    /,
    *,
    base: str,
    data: str,
    scale: str = "cpu",
    faults: list[str] | None = None,
    rates: list[float] | None = None,
    train_rate: float = 0.01,
    chips: int = 0,
    seed: int = 0,
    data_dir: Path | None = None,
    download: bool = False,
    out: Path = Path("reproduce"),
    workers: int | None = None,
    scheduler: str | None = None,
    retries: int = 1,
    dry_run: bool = False,
    status: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Compare ways to protect a model: on the same unseen chips, with what each needs and costs.

    Trains what has to be trained. Every training and measurement is a step that is done once and kept in --out, shared
    with the paper's tables (reproduce); the same command goes on after any interruption. Writes a record,
    comparison-NETWORK-DATA.json, and its tables as Markdown and LaTeX.

    Example: neuralfuse compare --scale smoke --data GTSRB --base VGG11 batch-statistics randbet convl
    Example: neuralfuse compare --base runs/base --data gtsrb --data-dir data randbet+convl my.module:Mine --dry-run

    Parameters
    ----------
    methods
        Names, with options after a colon (randbet:limit=0.2), several put together with + (randbet+convl: a NeuralFuse
        before the retrained model; convl+batch-statistics: one trained for the model as it is), or a class of your own
        (package.module:Class, runs your code). All of the library's by default.
    base
        A folder written by train-base; or a base model of the scale, by the paper's name or the network's, to be
        trained.
    data
        A data set of the scale, by its name there or its own.
    scale
        full, cpu, smoke, or a TOML file: how to train, how many chips and test images.
    faults
        What a rate means: stuck, reference, flip or another fault model by name. Repeat it for several; by default
        stuck and flip.
    rates
        Share of faulty cells (of inverted bits, for flip) to measure at. Repeat it for several; by default 0.005, 0.01
        and 0.02.
    train_rate
        The rate that methods prepare for.
    chips
        Unseen chips; by default as many as the scale has.
    seed
        Seed of all trainings.
    data_dir
        Where the data sets lie: CIFAR and GTSRB as torchvision keeps them, or class folders NAME/train, NAME/test.
    download
        Let torchvision download what is missing into --data-dir.
    out
        Folder for steps and records.
    workers
        Worker processes; by default one for each GPU, or for each --threads cores. 0: one step after the other, here.
    scheduler
        Address of a Dask scheduler, whose workers do the steps; --out must be a folder that all of them see.
    retries
        How often a step that fails is tried again.
    dry_run
        List the steps and about how long they take, and run none.
    status
        Say how far a run with the same options is.
    """
    from neuralfuse.compare import USUAL, Comparison, as_latex, as_markdown, as_text  # noqa: PLC0415
    from neuralfuse.files import write_json, write_text  # noqa: PLC0415
    from neuralfuse.reproduce import ANY_DEVICE, Place, engine, load_scale, outline, standing  # noqa: PLC0415

    require(retries >= 0, f"retries must be at least 0: got retries={retries}.")
    require(workers is None or workers >= 0, f"workers must be at least 0: got workers={workers}.")
    require(chips >= 0, f"chips must be at least 0: got chips={chips}.")
    device = str(common.set_up()) if scheduler is None else common.device or ANY_DEVICE
    place = Place(out.absolute(), None if data_dir is None else data_dir.absolute(), device, download)
    comparison = Comparison(
        scale=load_scale(scale), data=data, base=base, methods=methods or USUAL, faults=faults or ("stuck", "flip"),
        rates=rates or (0.005, 0.01, 0.02), train_rate=train_rate, seed=seed, chips=chips,
    )  # fmt: skip
    work, threads = comparison.work(place), common.threads or 1
    hands = usual_workers(device, threads) if workers is None else workers
    if dry_run or status:
        common.show(work.status(), standing(work) if status else outline(work, len(comparison.rows), hands))
        return
    with engine(workers=hands, threads=threads, scheduler=scheduler) as on, Display(place) as display:
        end = work.run(on, retries=retries, say=display.say, watch=display.watch)
    record = comparison.record(place)
    name = comparison.name
    write_json(out / f"{name}.json", record)
    write_text(out / f"{name}.md", "\n".join(as_markdown(record)) + "\n")
    write_text(out / f"{name}.tex", as_latex(record))
    work.check(end)
    common.show(record, f"{as_text(record)}\n\nWrote {name}.json, {name}.md and {name}.tex to {out}.")
