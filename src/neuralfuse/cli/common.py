"""The common options of all commands, and functions that open the models and data that they name.

Torch is imported only inside functions, so that the command line starts fast.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuralfuse.config import Running
from neuralfuse.errors import ConfigError, FileFormatError, unknown_name

if TYPE_CHECKING:
    import torch

    from neuralfuse.data import DataSet
    from neuralfuse.fuse import NeuralFuse
    from neuralfuse.memory import Deployed
    from neuralfuse.nets import BaseModel, DeployedBase
    from neuralfuse.quant import FloatWords, Scheme
    from neuralfuse.train import Listener

_RUNNING = Running()


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command.

    Attributes:
        device: cpu, cuda, cuda:1, ...; by default cuda if available.
        threads: Number of CPU threads; by default torch's number.
        config: TOML file with one table per command, e.g. [train] ber = 0.01. Flags override it.
        json: Print one JSON object on standard output. Everything else goes to standard error.
        allow_code: Allow a saved NeuralFuse to run the code of a user-defined generator.
        debug: Show a traceback with an error.
    """

    device: str | None = None
    threads: int | None = None
    config: Path | None = None
    json: bool = False
    allow_code: bool = False
    debug: bool = False

    def set_up(self) -> torch.device:
        """Apply the options to torch and return the device."""
        import torch  # noqa: PLC0415

        if self.threads is not None:
            if self.threads < 1:
                raise ConfigError(f"threads must be at least 1: got threads={self.threads}.")
            torch.set_num_threads(self.threads)
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if name == "cuda" and "LOCAL_RANK" in os.environ:  # one GPU per process of torchrun
            name = f"cuda:{os.environ['LOCAL_RANK']}"
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device must be one that torch can use here: got {name!r} ({reason}).") from error
        return device

    def open_fuse(self, folder: Path, device: torch.device | str = "cpu") -> NeuralFuse:
        """Return a trained NeuralFuse on a device."""
        from neuralfuse.fuse import NeuralFuse  # noqa: PLC0415

        return NeuralFuse.from_pretrained(folder, allow_code=self.allow_code).to(device)

    def show(self, record: Mapping[str, Any], text: str) -> None:
        """Print a result as JSON or as text."""
        print(json.dumps(record, allow_nan=False) if self.json else text)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of the data set.

    Attributes:
        data: digits (comes with the package), cifar10, cifar100, gtsrb, imagenet10 or folder. The last two are read
            from train/<class>/* and test/<class>/*.
        data_dir: Folder of the data set.
        image_size: Height and width to resize images to; by default the base model's.
        download: Let torchvision download the data set into --data-dir.
    """

    data: str = "digits"
    data_dir: Path | None = None
    image_size: tuple[int, int] | None = None
    download: bool = False

    def load(self, device: torch.device, size: tuple[int, int] | None = None) -> DataSet:
        """Load the images. ``size`` is used if the user gave no --image-size."""
        from neuralfuse.data import load_data  # noqa: PLC0415

        say(f"loading {self.data}")
        return load_data(
            self.data, self.data_dir, image_size=self.image_size or size, download=self.download, device=device
        )


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How weights are stored. By default, as the base model was trained for.

    Attributes:
        bits: Width of a stored word, 2..16.
        coding: Code of a stored word: two's complement (signed), one of the reference's unsigned codes (unsigned,
            asymmetric), or a floating-point format.
        rounding: nearest, or floor as in the text of the paper's reduced-precision study.
        granularity: One scale per tensor or per output channel.
        input_range: Input range of a model from package.module:factory: symmetric ([-1, 1]), unit ([0, 1]) or imagenet
            (mean/std-normalized).
        include: Name patterns of weights to store, e.g. "layer1.*"; by default the weights of all usual layer types.
        exclude: Name patterns of weights to leave out. They stay free of errors.
        readout: How the memory handles faulty words: plain does nothing, zero-faulty-words reads words that are known
            to be faulty as zeros, secded corrects single and detects double errors per 64 bits.
        activations: Store inputs and activations in faulty memory too, in 8 bits.
    """

    bits: int | None = None
    coding: Literal["signed", "unsigned", "asymmetric", "fp32", "fp16", "bf16", "fp8-e4m3", "fp8-e5m2"] | None = None
    rounding: Literal["nearest", "floor"] | None = None
    granularity: Literal["tensor", "channel"] | None = None
    input_range: Literal["symmetric", "unit", "imagenet"] | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    readout: Literal["plain", "zero-faulty-words", "secded"] = "plain"
    activations: bool = False

    def deploy(self, model: BaseModel, device: torch.device, running: Running = _RUNNING) -> Deployed:
        """Store a base model's weights in a memory."""
        from neuralfuse.memory import READOUTS, Activations, deploy  # noqa: PLC0415
        from neuralfuse.quant import Layers  # noqa: PLC0415

        return deploy(
            model.module.to(device),
            scheme=self._scheme(model.scheme),
            layers=Layers(include=self.include, exclude=self.exclude),
            input_range=self.input_range or model.input_range,
            readout=READOUTS[self.readout](),
            activations=Activations() if self.activations else None,
            running=running,
        )

    def _scheme(self, scheme: Scheme) -> Scheme | FloatWords:
        from neuralfuse.quant import FloatWords  # noqa: PLC0415

        names = ("bits", "coding", "rounding", "granularity")
        changes: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.coding is None or self.coding in ("signed", "unsigned", "asymmetric"):
            return replace(scheme, **changes)
        if len(changes) > 1:
            given = ", ".join(f"--{name}" for name in changes if name != "coding")
            raise ConfigError(f"{given} must be left out for --coding {self.coding}: a floating-point format has none.")
        return FloatWords(coding=self.coding)


def say(text: str) -> None:
    """Print a line on standard error. Of several processes, only the first prints."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def token(variable: str) -> str | None:
    """Return a bearer token from an environment variable; None if it is not set.

    Raises:
        ConfigError: the token cannot be sent in a header.
    """
    found = os.environ.get(variable, "").strip()
    if not all("!" <= char <= "~" for char in found):
        raise ConfigError(f"{variable} must be printable ASCII without spaces: it has other characters.")
    return found or None


def open_bases(
    references: Sequence[str],
    data: DataOptions,
    storage: StorageOptions,
    device: torch.device,
    running: Running,
) -> tuple[list[DeployedBase], DataSet]:
    """Open and deploy base models, and load images of their size.

    Raises:
        ConfigError: a reference is only the name of a base model, or a model does not fit the data.
        FileFormatError: a folder does not hold a base model.
    """
    from neuralfuse.memory.deployed import check_output  # noqa: PLC0415
    from neuralfuse.nets import DeployedBase  # noqa: PLC0415
    from neuralfuse.nets.base import check_base  # noqa: PLC0415
    from neuralfuse.nets.store import load_base, load_factory  # noqa: PLC0415

    opened = {reference: load_base(reference) for reference in references if _is_folder(reference)}
    size = next((model.image_size for model in opened.values()), None)
    images = data.load(device, size)
    for reference in references:
        if reference not in opened:
            opened[reference] = load_factory(
                reference, classes=len(images.classes), channels=images.channels, image_size=images.image_size
            )
    bases = []
    for reference in references:
        model = opened[reference]
        check_base(model, classes=len(images.classes), channels=images.channels)
        deployed = storage.deploy(model, device, running)
        check_output(deployed, images.test.images[:2], len(images.classes))
        bases.append(DeployedBase(model, deployed))
    return bases, images


def _is_folder(reference: str) -> bool:
    """Say whether a reference is a folder; else it is a factory. Raise an error if it is neither."""
    from neuralfuse.nets import BASE_MODELS  # noqa: PLC0415

    name = reference.partition("@")[0]
    if Path(reference).is_dir():
        return True
    if ":" in reference:
        return False
    if name in BASE_MODELS:
        raise ConfigError(
            f"--base must be a trained model: {reference} is only a name. Run `neuralfuse train-base --base "
            f"{reference} --out FOLDER` and pass that folder."
        )
    if "/" in reference or Path(reference).exists():
        raise FileFormatError(f"--base must be a folder written by train-base: {reference} is not a folder.")
    raise unknown_name("base model", reference, BASE_MODELS)


def listeners(title: str, tensorboard: Path | None) -> list[Listener]:
    """Return the listeners of a training that was started from the command line."""
    from neuralfuse.train import ProgressBar, TensorBoard  # noqa: PLC0415

    chosen: list[Listener] = [ProgressBar(title)]
    if tensorboard is not None:
        chosen.append(TensorBoard(tensorboard))
    return chosen
