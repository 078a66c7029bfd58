"""The main commands. Each turns its options into one library call and prints the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from neuralfuse.cli.blackbox import BoxOptions, check_left_out
from neuralfuse.cli.common import Common, DataOptions, StorageOptions, listeners, open_bases, say
from neuralfuse.cli.faults import FaultOptions
from neuralfuse.config import EopmConfig, QatConfig, Running
from neuralfuse.errors import require

_FLAT = Parameter(name="*")
_COMMON, _DATA, _STORAGE, _QAT = Common(), DataOptions(), StorageOptions(), QatConfig()
_RUNNING = Running()
_BOX = BoxOptions()
_EOPM, _FAULTS = EopmConfig(), FaultOptions()


def demo(
    *,
    out: Path = Path("demo"),
    seed: int = 0,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Show the whole story in minutes, without network or GPU: collapse at low voltage, and recovery.

    Train a small base model on the digits and store it in a faulty memory. Train NeuralFuse against the faults. Measure
    both on unseen chips. Writes results.json, accuracy.png, base/ and fuse/.

    Example: neuralfuse demo --out demo

    Parameters
    ----------
    out
        Folder for the results.
    seed
        Seed of both trainings.
    """
    from neuralfuse.demo import BASE, BER, run_demo, table  # noqa: PLC0415
    from neuralfuse.report import evaluations_picture  # noqa: PLC0415

    records = run_demo(out, seed=seed, device=common.set_up(), say=say)
    title = f"Digits, {BASE}: accuracy as the voltage falls"
    evaluations_picture(list(records.values()), title=title).save(out / "accuracy.png")
    record = records[BER]
    common.show(record, table(record) + f"\n\nWrote results.json, accuracy.png, base/ and fuse/ to {out}.")


def models(*, common: Annotated[Common, _FLAT] = _COMMON) -> None:
    """List the base models and generators with their parameter counts (ten classes, three channels).

    Example: neuralfuse models --json
    """
    from neuralfuse.nets import catalogue  # noqa: PLC0415

    record = catalogue()
    lines = [f"{'base model':26}{'parameters':>12}  image size"]
    for one in record["base_models"]:
        lines.append(f"{one['name']:26}{one['parameters']:>12,}  {one['image_size']:>3}  {one['note']}")
    lines.append(f"\n{'generator':26}{'parameters':>12}")
    for one in record["generators"]:
        lines.append(f"{one['name']:26}{one['parameters']:>12,}")
    for one in record["plugins"]:
        lines.append(f"{one['name']:26}{'':>12}  of a plugin: {one['factory']}")
    common.show(record, "\n".join(lines))


def train_base(
    *,
    base: str,
    out: Path,
    qat: Annotated[QatConfig, _FLAT] = _QAT,
    recipe: Literal["short", "paper"] = "short",
    ber: float | None = None,
    faults: str = "flip",
    data: Annotated[DataOptions, _FLAT] = _DATA,
    resume: bool = False,
    tensorboard: Path | None = None,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Train a base model by quantization-aware training.

    Example: neuralfuse train-base --base resnet8 --data digits --epochs 5 --out runs/base

    Parameters
    ----------
    base
        Name of a base model; `neuralfuse models` lists them.
    out
        Folder for the trained model.
    recipe
        Defaults of the training options: short, or the paper's 300 epochs.
    ber
        Train with bit errors at this rate too (RandBET), a fraction in [0, 1]. Every step adds the loss on a new chip.
    faults
        Fault model of these bit errors: a name, or a TOML or JSON file that describes one.
    resume
        Resume from the checkpoint in --out.
    tensorboard
        Folder for TensorBoard files.
    """
    from neuralfuse.pipeline import make_base  # noqa: PLC0415

    device = common.set_up()
    images = data.load(device)
    watch = listeners(f"train-base {base}", tensorboard)
    errors = None if ber is None else FaultOptions(ber=ber, faults=faults).model()
    record = make_base(base, images, qat, faults=errors, out=out, resume=resume, listeners=watch, device=device)
    text = f"{base}: {record['ca']:.2f}% of the test images (floating point {record['ca_float']:.2f}%). Wrote {out}."
    common.show(record, text)


def pretrain(
    *,
    out: Path,
    qat: Annotated[QatConfig, _FLAT] = _QAT,
    generator: str = "convl",
    fit: Literal["exact", "pad"] = "exact",
    data: Annotated[DataOptions, _FLAT] = _DATA,
    resume: bool = False,
    tensorboard: Path | None = None,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Teach a generator to classify images, as a start for train. One start serves all base models and voltages.

    Example: neuralfuse pretrain --generator unets --data digits --out runs/start

    Parameters
    ----------
    out
        Folder for the pretrained module. Pass it to train as --start.
    generator
        One of `neuralfuse models`, or package.module:factory (factory(channels, image_size) returns an nn.Module; this
        runs your code). Without the attribute `narrowest` it learns no classes.
    fit
        How to handle image sizes that are not multiples of 8: exact refuses them, pad pads and crops.
    resume
        Resume from the checkpoint in --out.
    tensorboard
        Folder for TensorBoard files.
    """
    from neuralfuse.pipeline import make_start  # noqa: PLC0415

    device = common.set_up()
    images = data.load(device)
    watch = listeners(f"pretrain {generator}", tensorboard)
    record = make_start(generator, images, qat, fit=fit, out=out, resume=resume, listeners=watch, device=device)
    text = f"{generator} classifies {record['accuracy']:.2f}% of the validation images correctly. Wrote {out}."
    common.show(record, text)


def train(
    *,
    base: list[str],
    out: Path,
    eopm: Annotated[EopmConfig, _FLAT] = _EOPM,
    generator: str = "convl",
    start: Path | None = None,
    fit: Literal["exact", "pad"] = "exact",
    faults: Annotated[FaultOptions, _FLAT] = _FAULTS,
    data: Annotated[DataOptions, _FLAT] = _DATA,
    storage: Annotated[StorageOptions, _FLAT] = _STORAGE,
    running: Annotated[Running, _FLAT] = _RUNNING,
    resume: bool = False,
    tensorboard: Path | None = None,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Train NeuralFuse by EOPM against a base model, or against several at once.

    Several processes share the work if torchrun starts them: torchrun --nproc-per-node 4 --no-python neuralfuse train
    ... All processes must share the folder --out. With --max-restarts, training resumes after a process is lost.

    Example: neuralfuse train --base runs/base --generator unets --ber 0.05 --epochs 20 --out runs/fuse

    Parameters
    ----------
    base
        A folder written by train-base, or package.module:factory (a zero-argument function that returns an nn.Module;
        this runs your code). Repeat it to train on an ensemble.
    out
        Folder for the trained module.
    generator
        One of `neuralfuse models`, or package.module:factory (factory(channels, image_size) returns an nn.Module; this
        runs your code).
    start
        Folder with the initial weights, written by pretrain or by an earlier train.
    fit
        How to handle image sizes that are not multiples of 8: exact refuses them, pad pads and crops.
    resume
        Resume from the checkpoint in --out.
    tensorboard
        Folder for TensorBoard files.
    """
    from neuralfuse.pipeline import make_fuse  # noqa: PLC0415
    from neuralfuse.train import Ranks  # noqa: PLC0415

    model = faults.model()
    device = common.set_up()
    bases, images = open_bases(base, data, storage, device, running)
    ranks = Ranks.from_torchrun(device)
    watch = listeners(f"train {generator}", tensorboard) if ranks.first else []
    record = make_fuse(
        generator, bases, images, eopm, start=start, faults=model, fit=fit, out=out,
        resume=resume or ranks.restarted(), listeners=watch, device=device, ranks=ranks,
    )  # fmt: skip
    text = (
        f"{generator} after step {record['best_step']}, on validation images and chips: "
        f"CA(NF) {record['ca_nf']:.2f}%, PA(NF) {record['pa_nf']:.2f}%. Wrote {out}."
    )
    if ranks.first:
        common.show(record, text)


# Arguments of `evaluate` that also apply to black-box models.
_FOR_BLACK_BOXES = {"fuse", "base", "data", "box", "out", "common"}


def evaluate(
    fuse: Path | None = None,
    *,
    base: str,
    faults: Annotated[FaultOptions, _FLAT] = _FAULTS,
    chips: int = 30,
    until: float | None = None,
    target: float | None = None,
    confidence: float = 0.95,
    published_chips: bool = False,
    faulty_generator: bool = False,
    data: Annotated[DataOptions, _FLAT] = _DATA,
    storage: Annotated[StorageOptions, _FLAT] = _STORAGE,
    running: Annotated[Running, _FLAT] = _RUNNING,
    box: Annotated[BoxOptions, _FLAT] = _BOX,
    out: Path | None = None,
    resume: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Measure accuracy on unseen chips with and without NeuralFuse, or the accuracy of a black-box model.

    Example: neuralfuse evaluate runs/fuse --base runs/base --ber 0.05 --chips 30 --out runs/record.json
    Example: neuralfuse evaluate runs/fuse --base https://host/v2/models/net --images 500 --cache runs/answers.db

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse. Without it, only CA and PA are measured.
    base
        A folder written by train-base, or package.module:factory (runs your code). Or a black-box model with its own
        faults: a server's https://host/v2/models/NAME (Open Inference Protocol), FILE.onnx, or
        call:package.module:function (runs your code; maps float32 (N, C, H, W) to one row per image).
    chips
        Number of unseen chips. On a fault map: number of random places of the weights (1: the place by --mapping).
    until
        Stop early once the 95% interval of PA(NF) (without a NeuralFuse: of PA) is at most this many points wide.
    target
        An accuracy in percent. Report how many chips reach it, and a lower bound on the share of all chips that do.
    confidence
        Confidence of that bound.
    published_chips
        Use the ten chips of the paper's tables.
    faulty_generator
        Store the weights of NeuralFuse in faulty memory of the same kind, too.
    out
        File for the record.
    resume
        Resume an interrupted evaluation with the same --out.
    """
    given = dict(locals())
    from neuralfuse.blackbox import is_box  # noqa: PLC0415
    from neuralfuse.evaluation import Target, evaluation_text  # noqa: PLC0415
    from neuralfuse.pipeline import make_evaluation  # noqa: PLC0415

    if is_box(base):
        given["storage"] = replace(storage, input_range=None)
        own = {name: value for name, value in given.items() if name not in _FOR_BLACK_BOXES}
        check_left_out(evaluate, own, f"{base} is a black-box model (with --cache, its queries resume).")
        box.judge(fuse, base, data, storage.input_range, out, common)
        return
    box.check_unused()
    goal = None if target is None else Target(accuracy=target, confidence=confidence)
    require(not resume or out is not None, "--resume must come with --out, the file of the record to resume.")
    require(not faulty_generator or fuse is not None, "--faulty-generator must come with a NeuralFuse: got none.")
    model = faults.model(chips)
    device = common.set_up()
    bases, images = open_bases([base], data, storage, device, running)
    module = None if fuse is None else common.open_fuse(fuse, device)
    record = make_evaluation(
        module, bases[0], images, model,
        chips=None if published_chips else chips, faulty_generator=faulty_generator,
        until=until, target=goal, operating_point=faults.operating_point(model), out=out, resume=resume, say=say,
    )  # fmt: skip
    common.show(record, evaluation_text(record))
