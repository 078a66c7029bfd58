"""A model that one can only ask: options of `evaluate`, and the commands `choose` and `tune`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from neuralfuse.cli.common import Common, DataOptions, say, token
from neuralfuse.config import TuningConfig
from neuralfuse.errors import ConfigError, require

if TYPE_CHECKING:
    from neuralfuse.blackbox import Box, Careful
    from neuralfuse.ranges import InputRange

TOKEN = "NEURALFUSE_TOKEN"
_FLAT = Parameter(name="*")
_COMMON, _DATA, _TUNING = Common(), DataOptions(), TuningConfig()


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """How to ask a model that only answers (--base URL, FILE.onnx or call:module:function).

    Attributes:
        nominal: The same model without faults, asked as well.
        images: Images to ask about (of the test set; choose: of the validation set; tune: of the training set), drawn
            by a name; 0 for all.
        answers: What the model answers with, where its numbers do not say it: whole numbers are labels or the
            likeliest classes, all others are logits.
        cache: File for answers, which are then not asked for again, also by a later run; it goes with one state of the
            model.
        budget: Images that may be sent, every try counted, over all runs with the same --cache (without one, to each
            model); 0 for any number.
        per_second: Images a second at most; 0 for as many as it answers.
        retries: How often a request is tried again that may succeed later.
        batch: Images a request.
        timeout: Seconds for a request. A token is read from the environment variable NEURALFUSE_TOKEN.
        input_name: Name of the model's input for images, where it has several.
        output_name: Name of its output with the answers, where it has several.
        layout: Order of the images' axes in what a server or an ONNX file takes.
    """

    nominal: str | None = None
    images: int = 0
    answers: Literal["logits", "probabilities", "top-k", "labels"] | None = None
    cache: Path | None = None
    budget: int = 0
    per_second: float = 0.0
    retries: int = 6
    batch: int = 64
    timeout: float = 60.0
    input_name: str | None = None
    output_name: str | None = None
    layout: Literal["nchw", "nhwc"] = "nchw"

    def check_unused(self) -> None:
        """Raise a `ConfigError` if an option was given for a model that is no black box."""
        usual = BoxOptions()
        given = [name for name in self.__dataclass_fields__ if getattr(self, name) != getattr(usual, name)]
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        require(not given, f"{flags} must go with --base URL, FILE.onnx or call:module:function.")

    def judge(
        self,
        fuse: Path | None,
        base: str,
        data: DataOptions,
        input_range: str | None,
        out: Path | None,
        common: Common,
    ) -> None:
        """Ask, and show what came of it."""
        from neuralfuse.blackbox import judge, summary  # noqa: PLC0415
        from neuralfuse.files import check_writable, write_json  # noqa: PLC0415
        from neuralfuse.ranges import InputRange  # noqa: PLC0415

        device = common.set_up()
        if out is not None:
            check_writable(out.parent)
        module = None if fuse is None else common.open_fuse(fuse, device)
        images = data.load(device, None if module is None else module.image_size)
        given = None if input_range is None else InputRange.named(input_range)
        own = given or (InputRange() if module is None else module.input_range)
        with self.open_both(base, len(images.classes), own) as (box, nominal):
            record = judge(module, box, images, nominal=nominal, input_range=given, images=self.images, say=say)
        if out is not None:
            write_json(out, record)
        common.show(record, summary(record))

    @contextmanager
    def open_both(self, base: str, classes: int, input_range: InputRange) -> Iterator[tuple[Careful, Careful | None]]:
        """Yield a model to ask, and the same without faults where one was named."""
        with self.open(base, classes, input_range) as box:
            if self.nominal is None:
                yield box, None
            else:
                with self.open(self.nominal, classes, input_range) as nominal:
                    yield box, nominal

    def open(self, reference: str, classes: int, input_range: InputRange) -> Careful:
        """Return a model to ask."""
        from neuralfuse.blackbox import Careful, Limits, again, is_box, open_box  # noqa: PLC0415

        if not is_box(reference):
            raise ConfigError(f"a model to ask must be a URL, FILE.onnx or call:module:function: got {reference}.")
        limits = Limits(
            cache=self.cache, budget=self.budget, per_second=self.per_second, retries=self.retries, batch=self.batch
        )

        def opened() -> Box:
            return open_box(
                reference, input_name=self.input_name, output_name=self.output_name, token=token(TOKEN),
                timeout=self.timeout, input_range=input_range, layout=self.layout,
            )  # fmt: skip

        box = again(opened, self.retries, told=lambda error, seconds: say(f"{error} Trying again in {seconds:g} s."))
        return Careful(box, classes=classes, limits=limits, kind=self.answers)


_BOX = BoxOptions()


def choose(
    *fuses: Path,
    base: str,
    data: Annotated[DataOptions, _FLAT] = _DATA,
    box: Annotated[BoxOptions, _FLAT] = _BOX,
    keep: Path | None = None,
    out: Path | None = None,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Choose, by the answers of a model that only answers, which of several NeuralFuses suits it.

    They were trained for other models, at several rates, with several generators. Each round asks about more validation
    images and keeps the better half.

    Example: neuralfuse choose runs/a runs/b runs/c --base https://host/v2/models/net --images 400 --keep runs/best

    Parameters
    ----------
    fuses
        Folders of trained NeuralFuses.
    base
        The model: https://host/v2/models/NAME, FILE.onnx, or call:package.module:function (runs your code).
    keep
        Folder for a copy of the best one; none is written where no NeuralFuse is better.
    out
        File for the record.
    """
    from neuralfuse.blackbox import choice_summary  # noqa: PLC0415
    from neuralfuse.blackbox import choose as run  # noqa: PLC0415
    from neuralfuse.files import check_writable, write_json  # noqa: PLC0415

    for path in (keep, out):
        if path is not None:
            check_writable(path.parent)
    require(len(fuses) > 0, "there must be a NeuralFuse to choose: got none.")
    require(box.nominal is None, "--nominal must be left out: a choice is made on the model as it is.")
    device = common.set_up()
    modules = {str(path): common.open_fuse(path, device) for path in fuses}
    first = next(iter(modules.values()))
    images = data.load(device, first.image_size)
    with box.open(base, len(images.classes), first.input_range) as opened:
        record = run(modules, opened, images, images=box.images, say=say)
    if keep is not None and record["best"] in modules:
        modules[record["best"]].save_pretrained(keep)
    if out is not None:
        write_json(out, record)
    common.show(record, choice_summary(record))


def tune(
    fuse: Path,
    *,
    base: str,
    out: Path,
    tuning: Annotated[TuningConfig, _FLAT] = _TUNING,
    data: Annotated[DataOptions, _FLAT] = _DATA,
    box: Annotated[BoxOptions, _FLAT] = _BOX,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Fit a NeuralFuse to a model that only answers: an evolution strategy on its weights, within --queries images.

    The module was trained for other models, or for all chips; the one behind the address is one chip. With --nominal,
    what the same model answers without faults stands for labels. With --cache, the same command goes on after an
    interruption without asking anything twice. Writes the module, and tuning.json beside it.

    Example: neuralfuse tune runs/fuse --base https://host/v2/models/net --cache answers.db --out runs/tuned

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse.
    base
        The model: https://host/v2/models/NAME, FILE.onnx, or call:package.module:function (runs your code).
    out
        Folder for the tuned module.
    """
    from neuralfuse.blackbox import tune as run  # noqa: PLC0415
    from neuralfuse.blackbox import tuning_summary  # noqa: PLC0415
    from neuralfuse.files import check_writable, write_json  # noqa: PLC0415

    check_writable(out)
    module = common.open_fuse(fuse, common.set_up())
    images = data.load(module.scale.device, module.image_size)
    with box.open_both(base, len(images.classes), module.input_range) as (opened, nominal):
        made, record = run(module, opened, images, tuning, images=box.images, nominal=nominal, say=say)
    made.save_pretrained(out)
    write_json(out / "tuning.json", record)
    common.show(record, f"{tuning_summary(record)}\nWrote {out}.")
