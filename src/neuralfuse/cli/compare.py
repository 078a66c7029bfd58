"""The `compare` command: protection methods, measured on the same chips."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from neuralfuse.cli.common import Common
from neuralfuse.cli.work import WorkOptions
from neuralfuse.errors import require

_FLAT = Parameter(name="*")
_COMMON, _WORK = Common(), WorkOptions()


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
    work: Annotated[WorkOptions, _FLAT] = _WORK,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Compare ways to protect a model on the same unseen chips, with the needs and costs of each.

    Trains whatever is missing. Every training and measurement is a step that is done once and kept in --out. The
    paper's tables (reproduce) share these steps. After an interruption, run the same command again. Writes a record,
    comparison-NETWORK-DATA-DIGEST.json, and its tables as Markdown and LaTeX.

    Example: neuralfuse compare --scale smoke --data GTSRB --base VGG11 batch-statistics randbet convl
    Example: neuralfuse compare --base runs/base --data gtsrb --data-dir data randbet+convl my.module:Mine --dry-run

    Parameters
    ----------
    methods
        Names of methods; by default all that work alone. Options follow a colon (randbet:limit=0.2). Combine methods
        by +: randbet+convl trains a NeuralFuse for the retrained model, convl+batch-statistics one for the unchanged
        model; calibrate and tune follow a generator (unetl+calibrate). Or a class of your own (package.module:Class,
        runs your code).
    base
        A folder written by train-base; or a base model of the scale to train, by the paper's name or the network's.
    data
        A data set of the scale, by the paper's name or its own.
    scale
        full, cpu, smoke, or a TOML file, which sets recipes and the numbers of chips and test images.
    faults
        Fault model of a rate: stuck, reference, flip or another name. Repeat it for several; by default stuck and
        flip.
    rates
        Share of faulty cells (of inverted bits, for flip) to measure at. Repeat it for several; by default 0.005, 0.01
        and 0.02.
    train_rate
        The rate that methods prepare for.
    chips
        Number of unseen chips; by default the scale's.
    seed
        Seed of all trainings.
    """
    from neuralfuse.compare import USUAL, Comparison, as_latex, as_markdown, as_text  # noqa: PLC0415
    from neuralfuse.files import write_json, write_text  # noqa: PLC0415
    from neuralfuse.steps import load_scale  # noqa: PLC0415

    require(chips >= 0, f"chips must be at least 0: got chips={chips}.")
    workspace = work.workspace(common)
    comparison = Comparison(
        scale=load_scale(scale), data=data, base=base, methods=methods or USUAL, faults=faults or ("stuck", "flip"),
        rates=rates or (0.005, 0.01, 0.02), train_rate=train_rate, seed=seed, chips=chips,
        allow_code=common.allow_code,
    )  # fmt: skip
    steps = comparison.work(workspace)
    if work.show_only(steps, len(comparison.rows), common):
        return
    end = work.run(
        lambda on, display: steps.run(on, retries=work.retries, say=display.say, watch=display.watch), workspace, common
    )
    record, file = comparison.record(workspace), work.out / comparison.name
    write_json(file.with_suffix(".json"), record)
    write_text(file.with_suffix(".md"), "\n".join(as_markdown(record)) + "\n")
    write_text(file.with_suffix(".tex"), as_latex(record))
    steps.check(end)
    wrote = f"{file.name}.json, {file.name}.md and {file.name}.tex"
    common.show(record, f"{as_text(record)}\n\nWrote {wrote} to {work.out}.")
