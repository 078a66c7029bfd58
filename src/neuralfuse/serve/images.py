"""The image input of a request: find it, check it, read it, replace it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from neuralfuse.errors import DataError
from neuralfuse.export.apply import check_inputs
from neuralfuse.fuse import NeuralFuse
from neuralfuse.wire import Message, WireError, WireTensor

_TYPES = ("FP32", "FP16", "FP64", "UINT8")


@dataclass(frozen=True)
class ImageInput:
    """How to find the images of a request.

    Attributes:
        fuse: The NeuralFuse that will transform them.
        name: Name of the input; None for the only input with the images' shape.
        layout: Order of the images' axes.
    """

    fuse: NeuralFuse
    name: str | None
    layout: Literal["nchw", "nhwc"]

    def find(self, request: Message) -> WireTensor:
        """Return the image input.

        Raises:
            WireError: the request has no such input or several, or the NeuralFuse cannot take it.
        """
        wanted = self._shape
        if self.name is not None:
            own = [one for one in request.tensors if one.name == self.name]
        else:
            own = [one for one in request.tensors if len(one.shape) == 4 and one.shape[1:] == wanted]
        sizes = ", ".join(map(str, wanted))
        if len(own) != 1:
            what = f"named {self.name}" if self.name is not None else f"of shape (N, {sizes})"
            got = ", ".join(f"{one.name} {one.shape}" for one in request.tensors)
            raise WireError(f"the request must have one input {what}, the images: got {got}.")
        found = own[0]
        if found.shape[1:] != wanted or len(found.shape) != 4 or found.shape[0] == 0:
            raise WireError(f"{found.name} must have shape (N, {sizes}): got {found.shape}.")
        if found.datatype not in _TYPES:
            raise WireError(f"{found.name} must be of {', '.join(_TYPES)}: got {found.datatype}.")
        return found

    @property
    def _shape(self) -> tuple[int, int, int]:
        channels, (height, width) = self.fuse.channels, self.fuse.image_size
        return (channels, height, width) if self.layout == "nchw" else (height, width, channels)

    def read(self, found: WireTensor) -> Tensor:
        """Return the images as uint8 or float32 (N, C, H, W).

        Raises:
            WireError: values lie outside the range of the model's inputs.
        """
        with np.errstate(over="ignore"):  # FP64 beyond float32 becomes infinite, and is refused as no model input
            x = torch.from_numpy(np.array(found.values, dtype=np.uint8 if found.datatype == "UINT8" else np.float32))
        x = x if self.layout == "nchw" else x.permute(0, 3, 1, 2)
        if x.dtype != torch.uint8:
            try:
                check_inputs(self.fuse, x)
            except DataError as error:
                raise WireError(f"{found.name}: {error}") from error
        return x

    def replace(self, request: Message, found: WireTensor, made: Tensor) -> Message:
        """Return the request with the transformed images (N, C, H, W) in its image input."""
        values = (made if self.layout == "nchw" else made.permute(0, 2, 3, 1)).numpy()
        return request.with_values(found.name, np.ascontiguousarray(values.astype(found.values.dtype)))
