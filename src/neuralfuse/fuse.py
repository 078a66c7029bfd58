"""NeuralFuse itself: F(x) = clip(x + G(x)), an ordinary module that goes in front of a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

from neuralfuse.data import DataSet
from neuralfuse.errors import ConfigError, FileFormatError, NeuralFuseError, ShapeError, require, unknown_name
from neuralfuse.files import load_weights, read_json, write_model
from neuralfuse.memory import Deployed
from neuralfuse.nets.generators import GENERATORS, Fit, Padding, code_of, generator, padding_of, plugins
from neuralfuse.ranges import InputRange

SCHEMA = "neuralfuse/module/1"


class NeuralFuse(nn.Module):
    """F(x) = clip(x + G(x)): a trained change of the input that makes it survive bit errors in the model behind it.

    Args:
        generator: G: a key of `GENERATORS`, a plugin's name, ``package.module:factory`` (runs that code), or a module
            of your own, from images (N, C, H, W) on [-1, 1] to a perturbation of the same shape.
        channels: Channels of the images.
        image_size: (H, W) of the images it is made for.
        input_range: Input range of the model behind it, or the range's name. G works on [-1, 1]. Inputs are mapped
            there and back, so x and F(x) lie in the model's own space.
        fit: ``exact`` refuses image sizes that G cannot take; ``pad`` pads them by their edge and crops the result.
        seed: Seed of G's initial weights; needed unless G is a module.
        trained: What it was trained against, for records.
    Raises:
        UnknownNameError: there is no such generator.
        ConfigError: a generator of your own cannot be made, or returns another shape; or ``seed`` is missing.
        ShapeError: G cannot take ``image_size``, and ``fit`` is ``exact``.
    Source:
        NeuralFuse (arXiv 2306.16869) section 3.1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        generator: str | nn.Module,
        *,
        channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        input_range: InputRange | str = "symmetric",
        fit: Fit = "exact",
        seed: int | None = None,
        trained: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        whole = isinstance(image_size, tuple | list) and [type(side) for side in image_size] == [int, int]
        require(whole, f"image_size must be (height, width): got {image_size!r}.")
        if fit not in get_args(Fit):
            raise unknown_name("fit", fit, get_args(Fit))
        if isinstance(input_range, str):
            input_range = InputRange.named(input_range)
        if not isinstance(input_range, InputRange):
            raise ConfigError(f"input_range must be an InputRange or the name of one: got {input_range!r}.")
        input_range.check_channels(channels)
        self.name = generator if isinstance(generator, str) else _name_of(generator)
        self.channels, self.image_size = channels, (image_size[0], image_size[1])
        self.input_range, self.fit = input_range, fit
        self.trained: dict[str, Any] = dict(trained or {})
        self.generator = _made(generator, channels, image_size, seed)
        self.code = code_of(generator) if isinstance(generator, str) else {}
        self._paddings: dict[tuple[int, int], Padding] = {}
        self._check_weights()
        self._padding(self.image_size)
        scale, shift = input_range.affine_to_symmetric()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @staticmethod
    def for_(
        base: Deployed, data: DataSet, generator: str | nn.Module, *, fit: Fit = "exact", seed: int | None = None
    ) -> NeuralFuse:
        """Return an untrained module for a base model and its images, on the model's device.

        Args:
            base: Its input range is the module's.
            data: Its channels and image size are the module's.
            generator: See `NeuralFuse`.
            fit: See `NeuralFuse`.
            seed: Seed of the generator's initial weights; needed unless the generator is a module.
        """
        fits = isinstance(base, Deployed) and isinstance(data, DataSet)
        kinds = f"a {type(base).__name__} and a {type(data).__name__}"
        require(fits, f"for_ must get a deployed model, deploy(model), and a DataSet of its images: got {kinds}.")
        made = NeuralFuse(
            generator, channels=data.channels, image_size=data.image_size, input_range=base.input_range, fit=fit,
            seed=seed,
        )  # fmt: skip
        return made.to(base.memory.device)

    def _check_weights(self) -> None:
        lazy = any(isinstance(one, UninitializedParameter) for one in self.generator.parameters())
        require(not lazy, f"generator {self.name} must have its weights from the start: it has lazy layers.")
        others = {one.dtype for one in self.generator.parameters()} - {torch.float32}
        require(not others, f"generator {self.name} must have float32 weights: got {', '.join(map(str, others))}.")

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed images, in the space and shape of ``x`` (N, C, H, W).

        Raises:
            ShapeError: x are no floats, or have another number of channels, or a size that G cannot take.
        """
        if not x.is_floating_point():
            raise ShapeError(
                f"images must be floats in the model's own input space: got {x.dtype}. Pixels are converted by "
                "input_range.from_images(x)."
            )
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ShapeError(f"images must be (N, {self.channels}, H, W): got {tuple(x.shape)}.")
        z = self.symmetric(x)
        return (torch.clamp(z + self.perturbation(z), -1, 1) - self.shift) / self.scale

    def symmetric(self, x: Tensor) -> Tensor:
        """Return images of the model's space on [-1, 1], as the generator takes them."""
        return (self.scale * x + self.shift).contiguous(memory_format=torch.channels_last)  # a tenth faster

    def perturbation(self, z: Tensor) -> Tensor:
        """Return G of images (N, C, H, W) on [-1, 1], to be added to them there.

        Raises:
            ShapeError: they have a size that G cannot take.
        """
        height, width = z.shape[2:]
        padding = self._padding((height, width))
        padded = z if padding == Padding() else F.pad(z, padding, mode="replicate")
        made: Tensor = self.generator(padded)
        if padded is z:
            return made
        return made[:, :, padding.top : padding.top + height, padding.left : padding.left + width]

    def _padding(self, size: tuple[int, int]) -> Padding:
        if size not in self._paddings:
            self._paddings[size] = padding_of(self.generator, self.name, self.channels, size, self.fit)
        return self._paddings[size]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder, the Hugging Face Hub's convention.

        Of a generator of your own, the weights, the reference and a digest of its file are written, and no code.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        config = {
            "schema": SCHEMA,
            "generator": self.name,
            "channels": self.channels,
            "image_size": list(self.image_size),
            "input_range": self.input_range.to_config(),
            "fit": self.fit,
            "trained": self.trained,
            **self.code,
        }
        write_model(folder, self, config)

    @staticmethod
    def from_pretrained(
        folder: Path | str, *, generator: nn.Module | None = None, allow_code: bool | str = False
    ) -> NeuralFuse:
        """Read a module that `save_pretrained` wrote; it comes in eval mode, on the CPU.

        Args:
            folder: Where it lies.
            generator: The generator that the saved weights belong to, where the library does not make it.
            allow_code: Import and run the code of a generator that does not come with the library: of whichever the
                folder names, or of the one named here alone.
        Raises:
            FileFormatError: the folder is not one of a NeuralFuse module, or its weights do not fit its config.
            ConfigError: the generator does not come with the library, and its code is not allowed or cannot be run.
        """
        folder = Path(folder)
        path = folder / "config.json"
        config = read_json(path, SCHEMA)
        try:
            name, trained = str(config["generator"]), _training(config["trained"])
            size, channels = (int(config["image_size"][0]), int(config["image_size"][1])), int(config["channels"])
            input_range, fit = InputRange.from_config(config["input_range"]), config["fit"]
        except (KeyError, TypeError, IndexError, ValueError, LookupError, OverflowError, ConfigError) as error:
            raise FileFormatError(f"{path} must describe a NeuralFuse module: {error!r}.") from error
        if generator is None and name not in GENERATORS:
            _check_allowed(path, name, allow_code if isinstance(allow_code, bool) else allow_code == name)
        try:
            fuse = NeuralFuse(
                name if generator is None else generator, channels=channels, image_size=size, input_range=input_range,
                fit=fit, seed=0, trained=trained,
            )  # fmt: skip
        except NeuralFuseError as error:
            if name not in GENERATORS:
                raise
            raise FileFormatError(f"{path} must describe a NeuralFuse module: {error!r}.") from error
        fuse.name = name
        if generator is None and config.get("code", fuse.code.get("code")) != fuse.code.get("code"):
            text = (
                f"the code of the generator {name} has changed since {folder} was saved: it may compute something else."
            )
            warnings.warn(text, stacklevel=2)
        load_weights(fuse, folder / "model.safetensors", f"generator {fuse.name}")
        return fuse.eval()


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a module was trained; each of its base models must be a table."""
    bases = {"bases": [dict(one) for one in config["bases"]]} if "bases" in config else {}
    return {**config, **bases}


def _name_of(module: nn.Module) -> str:
    """Return a module's name for people. Its dots keep it from being taken for a generator of the library."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _made(given: str | nn.Module, channels: int, image_size: tuple[int, int], seed: int | None) -> nn.Module:
    if isinstance(given, nn.Module):
        return given
    require(isinstance(given, str), f"a generator must be a name or an nn.Module: got {given!r}.")
    if seed is None:
        raise ConfigError(f"seed must be given, because the weights of {given} are drawn at random: pass seed=0.")
    return generator(given, channels=channels, image_size=image_size, seed=seed)


def _check_allowed(path: Path, name: str, allow_code: bool) -> None:
    """Raise a `ConfigError` unless the code of a saved module's generator may and can be run."""
    known = ":" in name or name in plugins()
    if not known:
        raise FileFormatError(
            f"{path} must name a generator that is known here: got {name!r}. If it is a module of your own, pass it: "
            "from_pretrained(generator=...)."
        )
    require(
        allow_code,
        f"{path} names the generator {name}, whose code would be run: pass --allow-code (allow_code=True in Python) if "
        "you trust it.",
    )


def check_same_range(fuse: nn.Module, base: Deployed) -> None:
    """Raise a `ConfigError` unless a module's outputs have the input range of the model behind it."""
    own = getattr(fuse, "input_range", base.input_range)
    if own != base.input_range:
        raise ConfigError(f"NeuralFuse and base model must have one input range: got {own} and {base.input_range}.")
