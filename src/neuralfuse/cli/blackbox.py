"""Black-box models on the command line: options of `evaluate`, and the commands `choose` and `tune`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from neuralfuse.cli.common import Common, DataOptions, say, token
from neuralfuse.config import TuningConfig
from neuralfuse.errors import BusyError, ConfigError, require

if TYPE_CHECKING:
    from neuralfuse.blackbox import Box, LimitedBox
    from neuralfuse.ranges import InputRange

TOKEN = "NEURALFUSE_TOKEN"
_FLAT = Parameter(name="*")
_COMMON, _DATA, _TUNING = Common(), DataOptions(), TuningConfig()


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """How to query a black-box model (--base URL, FILE.onnx or call:module:function).

    Attributes:
        nominal: The same model without faults, queried as well.
        images: Number of images to send, a fixed random subset of the test set (choose: of the validation set; tune:
            of the training set); 0 for all.
        answers: Kind of the model's answers. By default integers are labels or the most likely classes, and all other
            numbers are logits.
        cache: SQLite file for answers. An image whose answer is in it is not sent again, not even by a later run. It
            is valid only as long as the model stays the same.
        budget: Images that may be sent, retries included, over all runs with the same --cache (without a cache: per
            model and run); 0 for no limit.
        per_second: Images per second at most; 0 for no limit.
        retries: Retries of a request that failed for a temporary reason.
        batch: Images per request.
        timeout: Seconds per request. If NEURALFUSE_TOKEN is set, requests carry it as bearer token.
        input_name: Name of the model's input for images; needed if the model has several inputs.
        output_name: Name of the model's output with the answers; needed if the model has several outputs.
        layout: Order of the images' axes that a server or an ONNX file expects.
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
        """Raise a `ConfigError` if an option was given although the model is no black box."""
        flags = _changed(self, BoxOptions())
        require(not flags, f"{', '.join(flags)} must go with --base URL, FILE.onnx or call:module:function.")

    def judge(
        self,
        fuse: Path | None,
        base: str,
        data: DataOptions,
        input_range: str | None,
        out: Path | None,
        common: Common,
    ) -> None:
        """Measure the accuracy of a black-box model, and show the record."""
        from neuralfuse.blackbox import answers_text, judge  # noqa: PLC0415
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
        common.show(record, answers_text(record))

    @contextmanager
    def open_both(
        self, base: str, classes: int, input_range: InputRange
    ) -> Iterator[tuple[LimitedBox, LimitedBox | None]]:
        """Yield the black-box model, and the model without faults if --nominal names it."""
        with self.open(base, classes, input_range) as box:
            if self.nominal is None:
                yield box, None
            else:
                with self.open(self.nominal, classes, input_range) as nominal:
                    yield box, nominal

    def open(
        self, reference: str, classes: int, input_range: InputRange, *, sleep: Callable[[float], None] = time.sleep
    ) -> LimitedBox:
        """Return the black-box model that a reference names, limited by these options.

        ``sleep`` waits for some seconds before a retry.
        """
        from neuralfuse.blackbox import LimitedBox, Limits, is_box, open_box, retry  # noqa: PLC0415

        if not is_box(reference):
            raise ConfigError(f"a black-box model must be a URL, FILE.onnx or call:module:function: got {reference}.")
        limits = Limits(
            cache=self.cache, budget=self.budget, per_second=self.per_second, retries=self.retries, batch=self.batch
        )

        def opened() -> Box:
            return open_box(
                reference, input_name=self.input_name, output_name=self.output_name, token=token(TOKEN),
                timeout=self.timeout, input_range=input_range, layout=self.layout,
            )  # fmt: skip

        def on_retry(error: BusyError, seconds: float) -> None:
            say(f"{error} Retrying in {seconds:g} s.")

        box = retry(opened, self.retries, sleep=sleep, on_retry=on_retry)
        return LimitedBox(box, classes=classes, limits=limits, kind=self.answers, sleep=sleep)


def check_left_out(command: Callable[..., None], values: Mapping[str, Any], reason: str) -> None:
    """Raise a `ConfigError` that names every option that differs from its default.

    Args:
        command: The command.
        values: Arguments of the command by name: single options, or dataclasses of options.
        reason: Why they must be left out.
    """
    flags: list[str] = []
    for name, value in values.items():
        default = inspect.signature(command).parameters[name].default
        if is_dataclass(value):
            flags += _changed(value, default)
        elif value != default:
            flags.append(_flag(name, value))
    require(not flags, f"{', '.join(flags)} must be left out: {reason}")


def _changed(options: Any, defaults: Any) -> list[str]:
    """Return the flags of a dataclass of options whose values differ from the defaults."""
    pairs = {one.name: (getattr(options, one.name), getattr(defaults, one.name)) for one in fields(options)}
    return [_flag(name, value) for name, (value, default) in pairs.items() if value != default]


def _flag(name: str, value: Any) -> str:
    return f"--{'no-' * (value is False)}{name.replace('_', '-')}"


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
    """Choose among several NeuralFuses the best one for a black-box model, by its answers.

    The candidates may have been trained for other models, at several rates, with several generators. Each round uses
    more validation images and keeps the better half.

    Example: neuralfuse choose runs/a runs/b runs/c --base https://host/v2/models/net --images 400 --keep runs/best

    Parameters
    ----------
    fuses
        Folders of trained NeuralFuses.
    base
        The model: https://host/v2/models/NAME, FILE.onnx, or call:package.module:function (runs your code).
    keep
        Folder for a copy of the best one; not written if no NeuralFuse improves the accuracy.
    out
        File for the record.
    """
    from neuralfuse.blackbox import choice_text  # noqa: PLC0415
    from neuralfuse.blackbox import choose as run  # noqa: PLC0415
    from neuralfuse.files import check_writable, write_json  # noqa: PLC0415

    for path in (keep, out):
        if path is not None:
            check_writable(path.parent)
    require(len(fuses) > 0, "at least one NeuralFuse must be given: got none.")
    require(box.nominal is None, "--nominal must be left out: choose queries the faulty model only.")
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
    common.show(record, choice_text(record))


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
    """Fit a NeuralFuse to one black-box model by an evolution strategy, within --queries images.

    The given module was trained for other models or for all chips; the black-box model is one chip. With --nominal, the
    answers of the same model without faults replace the labels. With --cache, the same command resumes after an
    interruption without repeating a query. Writes the module, and tuning.json beside it.

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
    from neuralfuse.blackbox import tuning_text  # noqa: PLC0415
    from neuralfuse.files import check_writable, write_json  # noqa: PLC0415

    check_writable(out)
    module = common.open_fuse(fuse, common.set_up())
    images = data.load(module.scale.device, module.image_size)
    with box.open_both(base, len(images.classes), module.input_range) as (opened, nominal):
        made, record = run(module, opened, images, tuning, images=box.images, nominal=nominal, say=say)
    made.save_pretrained(out)
    write_json(out / "tuning.json", record)
    common.show(record, f"{tuning_text(record)}\nWrote {out}.")
