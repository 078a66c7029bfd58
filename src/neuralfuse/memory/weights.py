"""A model's weights as one image of stored words, and what a chip makes of them when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuralfuse.memory.chip import Chip
from neuralfuse.memory.layout import Layout
from neuralfuse.quant import DEFAULT_LAYERS, Layers, Scheme, StoredTensor


@dataclass(frozen=True)
class Reading:
    """The words that read differently through a chip; all others read as stored.

    Attributes:
        index: int64 (k,), sorted: words of the image with at least one changed bit.
        codes: The scheme's dtype (k,): what is read there.
        values: float32 (k,): the weights that these codes mean.
        changed_bits: Share of all stored bits that read differently.
    """

    index: Tensor
    codes: Tensor
    values: Tensor
    changed_bits: float


class WeightMemory:
    """The chosen weights of a model, quantized and laid out in one image.

    Attributes:
        scheme: How the weights are coded.
        layers: Which weights were chosen.
        stored: The tensors, in state_dict order.
        layout: Where each lies in the image.
        codes: The image: one code a weight, the scheme's dtype, (words,). Never modified.
        values: The weights that the clean codes mean, float32, (words,). Never modified.
    """

    def __init__(self, model: nn.Module, scheme: Scheme, layers: Layers = DEFAULT_LAYERS) -> None:
        self.scheme = scheme
        self.layers = layers
        self.stored: Sequence[StoredTensor] = layers.select(model)
        self.layout = Layout.of([(stored.name, stored.tensor.numel()) for stored in self.stored], scheme.bits)
        coded = [scheme.encode(stored.tensor, stored.channel_axis) for stored in self.stored]
        self.codes = torch.cat([one.codes.flatten() for one in coded])
        self.values = torch.cat([scheme.decode(one.codes, one.scale, one.center).flatten() for one in coded])
        self._scales = _ScaleTable(self.stored, [one.scale for one in coded], [one.center for one in coded])

    @property
    def device(self) -> torch.device:
        """Where the image lies."""
        return self.codes.device

    def codes_of(self, name: str) -> Tensor:
        """Return the stored codes of one tensor in its own shape, a view into the image."""
        return self.split(self.codes)[name]

    def split(self, image: Tensor) -> dict[str, Tensor]:
        """Return views of an image-sized tensor, one for each stored tensor by its name and in its shape."""
        return {
            stored.name: image[region.start : region.start + region.words].view(stored.tensor.shape)
            for stored, region in zip(self.stored, self.layout.regions, strict=True)
        }

    def read(self, chip: Chip) -> Reading:
        """Return what changes when the image is read through a chip; the stored codes stay as they are."""
        bits = self.scheme.bits
        faulty = chip.faults.cells(self.layout, chip.seed, self.device)
        index, position = torch.unique_consecutive(faulty.cell // bits, return_inverse=True)
        bit = torch.bitwise_left_shift(torch.ones_like(faulty.cell), faulty.cell % bits)
        # Cells are unique, so adding bits is the same as setting them.
        lost = torch.zeros_like(index).index_add_(0, position, torch.where(faulty.keeps, 0, bit))
        flipped = torch.zeros_like(index).index_add_(0, position, torch.where(faulty.flips, bit, 0))

        word = self.codes[index].long() & ((1 << bits) - 1)
        read = (word & ~lost) ^ flipped
        difference = word ^ read
        changed = difference != 0
        index, read, difference = index[changed], read[changed], difference[changed]
        ones = sum(((difference >> place) & 1).sum() for place in range(bits))
        if self.scheme.coding == "signed":
            sign = 1 << (bits - 1)
            read = (read ^ sign) - sign
        codes = read.to(self.scheme.dtype)
        scale, center = self._scales.of(index, self.layout)
        return Reading(index, codes, self.scheme.decode(codes, scale, center), float(ones) / self.layout.cells)


class _ScaleTable:
    """Scale and center of any word, without storing one for each."""

    def __init__(self, stored: Sequence[StoredTensor], scales: Sequence[Tensor], centers: Sequence[Tensor]) -> None:
        self._scale = torch.cat([scale.flatten() for scale in scales])
        self._center = torch.cat([center.flatten() for center in centers])
        device = self._scale.device
        count = torch.tensor([scale.numel() for scale in scales], device=device)
        self._count, self._first = count, count.cumsum(0) - count
        inner = [int(torch.tensor(one.tensor.shape[one.channel_axis + 1 :]).prod()) for one in stored]
        self._inner = torch.tensor(inner, device=device)

    def of(self, word: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return (scale, center), float32, for these words of the image."""
        starts = torch.tensor([region.start for region in layout.regions], device=word.device)
        region = torch.bucketize(word, starts, right=True) - 1
        channel = torch.div(word - starts[region], self._inner[region], rounding_mode="floor") % self._count[region]
        entry = self._first[region] + channel
        return self._scale[entry], self._center[entry]
