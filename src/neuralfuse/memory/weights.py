"""A model's weights as one image of stored words, and how they read through a chip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neuralfuse.errors import ConfigError
from neuralfuse.faults import Chip, Layout, Region
from neuralfuse.memory.readout import Plain, Readout
from neuralfuse.quant import DEFAULT_ADAPTERS, DEFAULT_LAYERS, Adapter, FloatWords, Layers, Scheme, StoredTensor


@dataclass(frozen=True)
class Reading:
    """The words that read differently through a chip. All other words read as stored.

    Attributes:
        index: int64 (k,), sorted: words of the image with at least one changed bit.
        codes: The scheme's dtype (k,): codes read there.
        values: float32 (k,): weights with these codes.
        memory: The memory that was read.
    """

    index: Tensor
    codes: Tensor
    values: Tensor
    memory: WeightMemory

    @property
    def stored(self) -> Tensor:
        """Codes stored there, in the dtype and shape of ``codes``."""
        return self.memory.codes.index_select(0, self.index)

    @property
    def changed_bits(self) -> float:
        """Share of all stored bits that read differently."""
        difference = self.stored ^ self.codes
        ones = sum((difference >> bit & 1).sum() for bit in range(self.memory.layout.bits))
        return float(ones) / self.memory.layout.cells

    @property
    def not_finite(self) -> int:
        """Number of weights that read as infinity or NaN, as floating-point words may."""
        return int((~torch.isfinite(self.values)).sum())


@dataclass(frozen=True)
class Part:
    """One tensor's place in the image, and how its words become a weight: by quantization scales or by an adapter.

    Attributes:
        stored: The tensor.
        region: Its words.
        scale: Quantization scale: () or one per output channel.
        center: Value of the code ``scheme.offset``, in the shape of ``scale``.
        shape: Shape of its codes.
        dtype: Dtype of its codes.
        adapter: The adapter that turns its codes into a weight. None for a scheme.
    """

    stored: StoredTensor
    region: Region
    scale: Tensor
    center: Tensor
    shape: torch.Size
    dtype: torch.dtype
    adapter: Adapter | None

    def scales(self, local: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and center of the words ``local`` of this tensor: () or one per word."""
        if self.scale.numel() == 1:
            return self.scale.view(()), self.center.view(())
        inner = math.prod(self.stored.tensor.shape[self.stored.channel_axis + 1 :])
        channel = torch.div(local, inner, rounding_mode="floor") % self.scale.numel()
        return self.scale.view(-1)[channel], self.center.view(-1)[channel]


class WeightMemory:
    """The chosen weights of a model, quantized and laid out in one image.

    Attributes:
        scheme: How the weights are coded.
        layers: Which weights were chosen.
        readout: How the memory reads faulty words.
        stored: The tensors, in state_dict order.
        parts: How each tensor is coded.
        layout: Where each tensor lies in the image.
        codes: The image: one code per weight, the scheme's dtype, (words,). Never modified.
        values: Weights with the clean codes, float32, (words,). Never modified. For a tensor with an adapter, the codes
            themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        scheme: Scheme | FloatWords,
        layers: Layers = DEFAULT_LAYERS,
        *,
        readout: Readout | None = None,
        adapters: Sequence[Adapter] = DEFAULT_ADAPTERS,
    ) -> None:
        self.scheme = scheme
        self.layers = layers
        self.readout = readout or Plain()
        codes, values = [], []
        self.parts: list[Part] = []
        start = 0
        for one in layers.select(model):
            part, own, value = self._stored(one, adapters, start)
            self.parts.append(part)
            codes.append(own.flatten())
            values.append(value.flatten())
            start += own.numel()
        self.stored: Sequence[StoredTensor] = [part.stored for part in self.parts]
        self.layout = Layout(tuple(part.region for part in self.parts), scheme.bits)
        self.codes, self.values = torch.cat(codes), torch.cat(values)
        self._image = self.readout.encode(self.codes, self.layout)
        self._zeros = self._zero_codes()

    def _stored(self, one: StoredTensor, adapters: Sequence[Adapter], start: int) -> tuple[Part, Tensor, Tensor]:
        """Return a tensor's part of the image from word ``start`` on, its words, and their values."""
        adapter = next((adapter for adapter in adapters if adapter.matches(one.tensor)), None)
        if adapter is None:
            try:
                coded = self.scheme.encode(one.tensor, one.channel_axis)
            except (ConfigError, NotImplementedError) as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"{one.name!r} cannot be stored: {reason}") from error
            codes, scale, center = coded.codes, coded.scale, coded.center
            part = Part(one, Region(one.name, start, codes.numel()), scale, center, codes.shape, codes.dtype, None)
            return part, codes, self.scheme.decode(codes, scale, center)
        # The adapter rebuilds the weight from this tensor, so it must not change with the user's model.
        one = replace(one, tensor=one.tensor.detach().clone())
        codes = adapter.codes(one.tensor)
        words = _as_words(codes, self.scheme, one.name)
        scale, center = torch.ones((), device=codes.device), torch.zeros((), device=codes.device)
        part = Part(one, Region(one.name, start, codes.numel()), scale, center, codes.shape, codes.dtype, adapter)
        return part, words, words.float()

    @property
    def device(self) -> torch.device:
        """Device of the image."""
        return self.codes.device

    def codes_of(self, name: str) -> Tensor:
        """Return the stored codes of one tensor in its own shape, a view into the image."""
        return self.split(self.codes)[name]

    def split(self, image: Tensor) -> dict[str, Tensor]:
        """Return views into an image-sized tensor: by the name of each stored tensor, in its shape."""
        return {
            part.region.name: image[part.region.start : part.region.start + part.region.words].view(part.shape)
            for part in self.parts
        }

    def parameters(self, values: Tensor) -> dict[str, Tensor]:
        """Build the stored parameters from an image of values. Return them by parameter name."""
        views = self.split(values)
        return {part.stored.parameter: self.parameter(part, views[part.region.name]) for part in self.parts}

    def read(self, chip: Chip, *, read: int = 0) -> Reading:
        """Return the words that change when the image is read through a chip. The stored codes are not modified.

        Args:
            chip: The chip.
            read: Number of earlier reads. Transient errors are drawn anew at each read.
        """
        index, words = self.readout.read(self._image, self.layout, chip, zeros=self._zeros, read=read)
        codes = self.scheme.signed(words)
        if not isinstance(self.readout, Plain):  # a word set to zero may have been zero
            differs = codes != self.codes.index_select(0, index)
            index, codes = index[differs], codes[differs]
        return Reading(index, codes, self._decode(index, codes), self)

    def _decode(self, index: Tensor, codes: Tensor) -> Tensor:
        values = torch.empty(len(index), dtype=torch.float32, device=index.device)
        for part, own in self.parts_of(index):
            if part.adapter is not None:
                values[own] = codes[own].float()
            else:
                values[own] = self.scheme.decode(codes[own], *part.scales(index[own] - part.region.start))
        return values

    def parts_of(self, index: Tensor) -> Iterator[tuple[Part, slice]]:
        """Yield each tensor with words in a sorted index, and the slice of the index with its words."""
        ends = torch.tensor([part.region.start + part.region.words for part in self.parts], device=index.device)
        first = 0
        for part, end in zip(self.parts, torch.searchsorted(index, ends).tolist(), strict=True):
            if end > first:
                yield part, slice(first, end)
            first = end

    def parameter(self, part: Part, values: Tensor) -> Tensor:
        """Build a stored parameter from its values in its shape."""
        if part.adapter is None:
            return values.to(part.stored.tensor.dtype)
        codes = values.to(self.scheme.dtype).view(part.dtype)
        return part.adapter.with_codes(part.stored.tensor.detach(), codes)

    def _zero_codes(self) -> Tensor | int:
        """Return the code of 0: one number if all words share it, otherwise one per word."""
        zeros = [
            torch.zeros((), dtype=self.codes.dtype, device=self.device)
            if part.adapter is not None
            else self.scheme.zero(part.scale, part.center)
            for part in self.parts
        ]
        first = int(zeros[0].flatten()[0])
        if all(bool((one == first).all()) for one in zeros):
            return first
        return torch.cat(
            [zero.expand(part.shape).flatten() for zero, part in zip(zeros, self.parts, strict=True)]
        )  # fmt: skip


def _as_words(codes: Tensor, scheme: Scheme | FloatWords, name: str) -> Tensor:
    """Return an adapter's words in the image's dtype, bit for bit."""
    width = codes.dtype.itemsize * 8
    if width > 16:
        raise ConfigError(f"words of another quantizer must have 8 or 16 bits: those of {name!r} have {width}.")
    if width == scheme.bits and scheme.dtype.itemsize != codes.dtype.itemsize:
        raise ConfigError(
            f"the scheme must be signed for {name!r}, which is stored in {width}-bit words: got {scheme}."
        )
    if width != scheme.bits:
        raise ConfigError(
            f"all words of a memory must have the same width: {name!r} has {width}-bit words, the scheme has "
            f"{scheme.bits}-bit words. Use {width} bits for the scheme, or leave one kind out with Layers(exclude=...)."
        )
    return codes.detach().contiguous().view(scheme.dtype)
