"""The float weights that a model runs on: one image, in the order and scale that suit the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralfuse.memory.buffers import BufferPool
from neuralfuse.memory.weights import Part, Reading, WeightMemory


@dataclass(frozen=True)
class Patch:
    """The changes of one chip to the image of float weights.

    Attributes:
        place: int64 (k,): changed positions of the image.
        values: float32 (k,): new values at these positions.
    """

    place: Tensor
    values: Tensor


class FloatWeights:
    """A memory's weights as floats, in the order and scale in which a model runs on them.

    Args:
        memory: The memory that stores the weights.
        scales: Factors for the output channels, (channels,), by parameter name.
        channels_last: Whether weights of 2-d and 3-d convolutions have the input channel last in memory.
    """

    def __init__(self, memory: WeightMemory, scales: Mapping[str, Tensor], *, channels_last: bool = False) -> None:
        self.memory = memory
        self._scales = {name: scale.to(memory.device) for name, scale in scales.items()}
        self._channels_last = channels_last
        self._images = BufferPool()
        self._moves = {
            part.stored.parameter: _moves(part).to(memory.device) for part in memory.parts if self._is_last(part)
        }
        self._clean = memory.values
        if scales or channels_last:
            self._clean = torch.empty_like(memory.values)
            for part in memory.parts:
                self._view(part, self._clean).copy_(self._scaled(part, self._own(part, memory.values).view(part.shape)))
        self.clean = self._parameters(self._clean)

    def patch(self, reading: Reading) -> Patch:
        """Return the changes of a reading, in this image's order and scale."""
        place, values = reading.index.clone(), reading.values.clone()
        for part, own in self.memory.parts_of(reading.index):
            scale, moves = self._scales.get(part.stored.parameter), self._moves.get(part.stored.parameter)
            if scale is None and moves is None:
                continue
            local = place[own] - part.region.start
            inner = math.prod(part.shape[1:])
            row = local // inner
            if scale is not None:
                values[own] *= scale.index_select(0, row)
            if moves is not None:
                place[own] += moves.index_select(0, local.sub_(row, alpha=inner))
        return Patch(place, values)

    def through(self, patch: Patch) -> dict[str, Tensor]:
        """Return the parameters with a patch applied to a copy of the image."""
        with torch.inference_mode(False), torch.no_grad():  # the result can be used with and without gradients
            return self._parameters(self._images.copy_of(self._clean).index_copy_(0, patch.place, patch.values))

    def times(self, factor: float) -> dict[str, Tensor]:
        """Return the parameters with every value multiplied by a factor."""
        return self._parameters(factor * self._clean)

    def _parameters(self, image: Tensor) -> dict[str, Tensor]:
        return {
            part.stored.parameter: self.memory.parameter(part, self._view(part, image)) for part in self.memory.parts
        }

    def _own(self, part: Part, image: Tensor) -> Tensor:
        return image[part.region.start : part.region.start + part.region.words]

    def _view(self, part: Part, image: Tensor) -> Tensor:
        """Return one tensor of the image in its shape."""
        own = self._own(part, image)
        if not self._is_last(part):
            return own.view(part.shape)
        rows, channels, *kernel = part.shape
        return own.view(rows, *kernel, channels).movedim(-1, 1)

    def _is_last(self, part: Part) -> bool:
        if not self._channels_last or part.adapter is not None or len(part.shape) not in (4, 5):
            return False
        return part.shape[1] > 1 and math.prod(part.shape[2:]) > 1  # otherwise both orders are the same

    def _scaled(self, part: Part, values: Tensor) -> Tensor:
        scale = self._scales.get(part.stored.parameter)
        return values if scale is None else values * scale.view(-1, *[1] * (values.dim() - 1))


def _moves(part: Part) -> Tensor:
    """Return each word's shift within its output channel when the input channel becomes the last axis: int64."""
    channels, kernel = part.shape[1], math.prod(part.shape[2:])
    now = torch.arange(channels * kernel)
    return now % kernel * channels + now // kernel - now
