"""A class head: it teaches a generator to tell classes apart, while EOPM teaches it what to do about them."""

from __future__ import annotations

from torch import Tensor, nn

from neuralfuse.errors import ConfigError
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets.base import seeded
from neuralfuse.quant import Scheme, quantized_call


class WithClassHead(nn.Module):
    """A NeuralFuse and, only while it learns, a linear classifier on its generator's narrowest layer.

    Args:
        fuse: The module that learns.
        classes: Classes of the data.
        seed: Seed of the head's initial weights.
    Raises:
        ConfigError: the generator has no such layer: ``uip``.
    """

    def __init__(self, fuse: NeuralFuse, *, classes: int, seed: int) -> None:
        super().__init__()
        narrowest: tuple[nn.Module, int] | None = getattr(fuse.generator, "narrowest", None)
        if narrowest is None:
            raise ConfigError(f"class_head needs a generator that encodes the image: got {fuse.name}. Set it to 0.")
        self.fuse = fuse
        self._layer, channels = (narrowest[0],), narrowest[1]  # in a tuple: its weights are the module's already
        self.head = seeded(lambda: nn.Linear(channels, classes), seed)

    def forward(self, x: Tensor, scheme: Scheme | None) -> tuple[Tensor, Tensor]:
        """Return F(x), its generator on weights fake-quantized by ``scheme``, and the head's logits (N, classes)."""
        seen: list[Tensor] = []
        hook = self._layer[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            output = quantized_call(self.fuse, x, scheme)
        finally:
            hook.remove()
        logits: Tensor = self.head(seen[0].mean(dim=(2, 3)))
        return output, logits
