"""The `plan` command: the cheapest voltage and protection that reach an accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from neuralfuse.cli.common import Common, DataOptions, StorageOptions, open_bases, say
from neuralfuse.cli.energy import HardwareOptions
from neuralfuse.cli.faults import FaultOptions, open_curve
from neuralfuse.config import Running
from neuralfuse.errors import ConfigError, require

_FLAT = Parameter(name="*")
_COMMON, _DATA, _STORAGE, _HARDWARE, _RUNNING = Common(), DataOptions(), StorageOptions(), HardwareOptions(), Running()


def plan(
    *,
    base: str,
    out: Path,
    target: float,
    fuse: list[Path] | None = None,
    yield_: Annotated[float | None, Parameter(name="--yield")] = None,
    confidence: float = 0.95,
    faults: str = "stuck",
    voltages: tuple[float, ...] = (),
    hardware: Annotated[HardwareOptions, _FLAT] = _HARDWARE,
    energy: Literal["weights", "inference"] = "weights",
    protect: tuple[int, ...] | None = None,
    inference_seconds: float = 0.0,
    smaller: list[str] | None = None,
    chips: int | None = None,
    images: int = 2000,
    data: Annotated[DataOptions, _FLAT] = _DATA,
    storage: Annotated[StorageOptions, _FLAT] = _STORAGE,
    running: Annotated[Running, _FLAT] = _RUNNING,
    resume: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Find the lowest-energy voltage and protection that reach an accuracy, by measuring all of them.

    Measures the model at several voltages: without protection, behind each NeuralFuse, and with protected bits. Reports
    the best way with and without NeuralFuse. Checks the choice on other chips and images. Writes plan.json, plan.png
    and the check's record, check.json.

    Example: neuralfuse plan --base runs/base --fuse runs/fuse --target 85 --out runs/plan
    Example: neuralfuse plan --base runs/base --fuse runs/fuse --target 80 --yield 0.9 --out runs/plan

    Parameters
    ----------
    base
        A folder written by train-base, or package.module:factory (runs your code).
    out
        Folder for the results.
    target
        Accuracy to reach, in percent.
    fuse
        Folder of a trained NeuralFuse. Repeat it to compare several.
    yield_
        Share of all chips that must reach the target, e.g. 0.99. By default, the mean over chips must reach it.
    confidence
        Confidence of statements about all chips.
    faults
        Fault model: a name (flip, stuck, ...) or a TOML or JSON file that describes one.
    voltages
        A voltage to measure at. Repeat it for several; by default the lowest without errors and six below it.
    energy
        Energy to minimize: that of the weights' memory (weights) or of the whole inference.
    protect
        A number of most significant bits to keep at the highest voltage, without NeuralFuse. Repeat it for several; by
        default 2 and 4, if words are wider.
    inference_seconds
        Time of an inference in seconds; needed if the technology leaks.
    smaller
        Folder of a smaller base model to run without errors. Repeat it to compare several.
    chips
        Maximum number of chips; by default as many as the target needs.
    images
        Maximum number of test images to choose by, out of one half of them. The other half checks the choice.
    resume
        Resume an interrupted plan with the same --out.
    """
    from neuralfuse.energy import Counts, Supply  # noqa: PLC0415
    from neuralfuse.evaluation import Target  # noqa: PLC0415
    from neuralfuse.plan import Hardware, make_plan, plan_text  # noqa: PLC0415
    from neuralfuse.report import plan_picture  # noqa: PLC0415

    device = common.set_up()
    curve = open_curve(hardware.curve, hardware.energy_law)
    made = Hardware(
        curve=curve,
        array=hardware.open_array(),
        technology=hardware.open_technology(),
        kib=hardware.bank_kib,
        seconds=inference_seconds,
    )
    goal = Target(accuracy=target, share=yield_, confidence=confidence)
    require(not faults.endswith(".npz"), f"--faults must be a fault model for a plan: {faults} is a single chip.")
    made.technology.inference(Counts.none(), bits=8, kib=made.kib, supply=Supply(seconds=made.seconds))
    options = FaultOptions(faults=faults, curve=hardware.curve)
    modules = {path.name: common.open_fuse(path, device) for path in fuse or []}
    require(len(modules) == len(fuse or []), "folders of --fuse must have different names: got two with the same name.")
    bases, images_of = open_bases([base, *(smaller or [])], data, storage, device, running)
    others = {Path(name).name: one for name, one in zip(smaller or [], bases[1:], strict=True)}
    if len(others) < len(bases) - 1:
        raise ConfigError("folders of --smaller must have different names: got two with the same name.")
    if protect is None:
        protect = tuple(count for count in (2, 4) if count < bases[0].deployed.memory.layout.bits)
    record = make_plan(
        bases[0], modules, images_of,
        faults_at=lambda voltage: replace(options, voltage=voltage).model(), hardware=made, target=goal,
        voltages=voltages, by=energy, chips=chips, images=images, protect=protect, smaller=others,
        out=out, resume=resume, say=say,
    )  # fmt: skip
    plan_picture(record).save(out / "plan.png")
    wrote = "plan.json and plan.png" if record["check"] is None else "plan.json, plan.png and check.json"
    common.show(record, f"{plan_text(record)}\n\nWrote {wrote} to {out}.")
