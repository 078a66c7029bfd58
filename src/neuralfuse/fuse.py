"""NeuralFuse itself: F(x) = clip(x + G(x)), an ordinary module that goes in front of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralfuse.errors import ConfigError, FileFormatError, ShapeError, unknown_name
from neuralfuse.files import load_weights, read_json, write_model
from neuralfuse.memory import Deployed
from neuralfuse.nets.generators import MULTIPLE, check_size, generator
from neuralfuse.ranges import InputRange

SCHEMA = "neuralfuse/module/1"
Fit = Literal["exact", "pad"]


class NeuralFuse(nn.Module):
    """F(x) = clip(x + G(x)): a trained change of the input that makes it survive bit errors in the model behind it.

    Args:
        name: The generator, a key of `GENERATORS`.
        channels: Channels of the images.
        image_size: (H, W) of the images it is made for.
        input_range: What the inputs of the model behind it are made of, or the range's name. G works on [-1, 1]; inputs
            are mapped there and back, so x and F(x) lie in the model's own space.
        fit: ``exact`` refuses image sizes that G cannot take; ``pad`` pads them by their edge and crops the result.
        seed: Seed of G's initial weights.
        trained: What it was trained against, for records.
    Source:
        NeuralFuse (arXiv 2306.16869) section 3.1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        name: str,
        *,
        channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        input_range: InputRange | str = "symmetric",
        fit: Fit = "exact",
        seed: int,
        trained: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if fit not in get_args(Fit):
            raise unknown_name("fit", fit, get_args(Fit))
        if isinstance(input_range, str):
            input_range = InputRange.named(input_range)
        input_range.check_channels(channels)
        if fit == "exact":
            check_size(name, *image_size)
        elif name == "uip":
            fit = "exact"  # a universal perturbation has the image's own size
        self.name, self.channels, self.image_size = name, channels, image_size
        self.input_range, self.fit = input_range, fit
        self.trained: dict[str, Any] = dict(trained or {})
        self.generator = generator(name, channels=channels, image_size=image_size, seed=seed)
        scale, shift = input_range.affine_to_symmetric()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed images, in the space and shape of ``x`` (N, C, H, W).

        Raises:
            ShapeError: x has another number of channels, or a size that G cannot take.
        """
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
        if self.name == "uip" and (height, width) != self.image_size:
            raise ShapeError(f"images for uip must be {self.image_size}: got {(height, width)}.")
        if self.fit == "exact":
            check_size(self.name, height, width)
            return self.generator(z)  # type: ignore[no-any-return]
        below, right = -height % MULTIPLE, -width % MULTIPLE
        padded = F.pad(z, (right // 2, right - right // 2, below // 2, below - below // 2), mode="replicate")
        top, left = below // 2, right // 2
        return self.generator(padded)[:, :, top : top + height, left : left + width]  # type: ignore[no-any-return]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder, the Hugging Face Hub's convention.

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
        }
        write_model(folder, self, config)

    @staticmethod
    def from_pretrained(folder: Path | str) -> NeuralFuse:
        """Read a module that `save_pretrained` wrote; it comes in eval mode, on the CPU.

        Raises:
            FileFormatError: the folder is not one of a NeuralFuse module, or its weights do not fit its config.
        """
        folder = Path(folder)
        path = folder / "config.json"
        config = read_json(path, SCHEMA)
        try:
            fuse = NeuralFuse(
                config["generator"],
                channels=int(config["channels"]),
                image_size=(int(config["image_size"][0]), int(config["image_size"][1])),
                input_range=InputRange.from_config(config["input_range"]),
                fit=config["fit"],
                seed=0,
                trained=dict(config["trained"]),
            )
        except (KeyError, TypeError, IndexError, ValueError, LookupError) as error:
            raise FileFormatError(f"{path} must describe a NeuralFuse module: {error!r}.") from error
        load_weights(fuse, folder / "model.safetensors", f"generator {fuse.name}")
        return fuse.eval()


def check_same_range(fuse: nn.Module, base: Deployed) -> None:
    """Raise a `ConfigError` unless what a module hands on is what the model behind it takes."""
    own = getattr(fuse, "input_range", base.input_range)
    if own != base.input_range:
        raise ConfigError(f"NeuralFuse and base model must have one input range: got {own} and {base.input_range}.")
