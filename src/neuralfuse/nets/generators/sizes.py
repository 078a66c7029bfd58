"""Which image sizes a generator can take, found by trying."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from neuralfuse.errors import ConfigError, NeuralFuseError, ShapeError

Fit = Literal["exact", "pad"]
_IMAGES = 2  # a generator may not mix the images of a batch up
_FURTHEST = 64  # pixels by which an image is padded at most


class Padding(NamedTuple):
    """Pixels to add on each side of an image."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


def padding_of(generator: nn.Module, name: str, channels: int, size: tuple[int, int], fit: Fit) -> Padding:
    """Return how images must be padded for a generator: to the nearest larger size that it can take.

    A generator can take the sizes for which it returns the images' own shape. A size is tried on the meta device, where
    nothing is computed; where the generator refuses that, it is tried on the CPU. A generator that raises a
    `ShapeError` of its own has the last word.

    Args:
        generator: The generator; not modified.
        name: Its name, for messages.
        channels: Channels of the images.
        size: (H, W) of the images.
        fit: ``exact`` allows no padding.
    Raises:
        ShapeError: the generator cannot take the size; the nearest legal ones are named.
        ConfigError: the generator can take no size near this one: it fails, or returns something else.
    """
    trials = _Trials(generator, name, channels)
    if trials.fits(size):
        return Padding()
    larger = trials.nearest(size, 1)
    if fit == "pad" and larger is not None:
        below, right = larger[0] - size[0], larger[1] - size[1]
        return Padding(right // 2, right - right // 2, below // 2, below - below // 2)
    legal = [one for one in (trials.nearest(size, -1), larger) if one is not None]
    if not legal:
        raise ConfigError(
            f"generator {name} must return images of the shape that it takes: for ({channels}, {size[0]}, {size[1]}) "
            f"it {trials.said(size)}, and no size near it fits."
        )
    sizes = " or ".join(f"{height}x{width}" for height, width in legal)
    raise ShapeError(
        f"image height and width must suit generator {name}: for {size[0]}x{size[1]} it {trials.said(size)}. "
        f'Resize to {sizes}, or use fit="pad" (--fit pad) to pad and crop.'
    )


class _Trials:
    """Tries sizes, each once."""

    def __init__(self, generator: nn.Module, name: str, channels: int) -> None:
        self._generator, self._name, self._channels = generator, name, channels
        self._twins: dict[str, nn.Module] = {}
        self._found: dict[tuple[int, int], tuple[int, ...] | str] = {}  # the size that comes back, or what else does

    def fits(self, size: tuple[int, int]) -> bool:
        """Say whether the generator can take a size."""
        if size not in self._found:
            self._found[size] = self._try(size)
        return self._found[size] == size

    def said(self, size: tuple[int, int]) -> str:
        """Return what the generator does with a size, in words."""
        found = self._found[size]
        return found if isinstance(found, str) else f"returns {'x'.join(map(str, found))}"

    def nearest(self, size: tuple[int, int], way: int) -> tuple[int, int] | None:
        """Return the nearest legal size up (1) or down (-1): each side by itself, square where they do not combine."""
        sides = [self._nearest_side(side, way) for side in size]
        height, width = sides
        if height is None or width is None:
            return None
        square = (max if way > 0 else min)(height, width)
        return (height, width) if self.fits((height, width)) else (square, square)

    def _nearest_side(self, side: int, way: int) -> int | None:
        sides = range(side, max(0, side + way * _FURTHEST), way)
        return next((one for one in sides if self.fits((one, one))), None)

    def _try(self, size: tuple[int, int]) -> tuple[int, ...] | str:
        found: tuple[int, ...] | str = ""
        for device in ("meta", "cpu"):
            try:
                made = self._run(device, size)
            except NeuralFuseError:
                raise
            except Exception as error:  # the code may be a user's, and may raise anything
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                found = f"fails: {reason.rstrip('.')}"
                continue
            if not isinstance(made, Tensor):
                return f"returns a {type(made).__name__}"
            if not made.is_floating_point():
                return f"returns {made.dtype}"
            same = made.dim() == 4 and made.shape[:2] == (_IMAGES, self._channels)
            return tuple(made.shape[2:]) if same else f"returns shape {tuple(made.shape)} for {_IMAGES} images"
        return found

    def _run(self, device: str, size: tuple[int, int]) -> object:
        # Not in the caller's inference mode, where tensors count no changes.
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            if device not in self._twins:
                self._twins[device] = copy.deepcopy(self._generator).to(device).eval()
            twin = self._twins[device]
            dtype = next((one.dtype for one in twin.parameters() if one.is_floating_point()), torch.float32)
            images = torch.zeros(_IMAGES, self._channels, *size, device=device, dtype=dtype)
            made, in_training = twin(images), twin.train()(images)
            twin.eval()
        if images._version:
            raise ConfigError(f"generator {self._name} must not change its input in place: it is needed for x + G(x).")
        if isinstance(made, Tensor) and getattr(in_training, "shape", None) != made.shape:
            raise ConfigError(f"generator {self._name} must return the same shape in training as in eval mode.")
        return made
