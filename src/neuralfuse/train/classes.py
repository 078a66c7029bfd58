"""Teaching a generator to classify images: before EOPM (`pretrain`), and during it (`WithClassHead`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from neuralfuse.config import QatConfig
from neuralfuse.data import DataSet
from neuralfuse.errors import ConfigError
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets.base import seeded
from neuralfuse.quant import Scheme, quantized_call
from neuralfuse.seeds import derive
from neuralfuse.train.listeners import Listener
from neuralfuse.train.loop import State
from neuralfuse.train.qat import train_base


class WithClassHead(nn.Module):
    """A NeuralFuse with a linear classifier on its generator's narrowest layer. The classifier is for training only.

    Args:
        fuse: The NeuralFuse to train.
        classes: Number of classes.
        seed: Seed of the head's initial weights.
    Raises:
        ConfigError: the generator has no ``narrowest`` layer: it does not encode the image.
    """

    def __init__(self, fuse: NeuralFuse, *, classes: int, seed: int) -> None:
        super().__init__()
        narrowest: Any = getattr(fuse.generator, "narrowest", None)
        if narrowest is None:
            raise ConfigError(
                f"a generator must encode the image to be taught classes, in a layer `narrowest`: {fuse.name} does "
                "not. Train it without --class-head."
            )
        if not (isinstance(narrowest, tuple) and len(narrowest) == 2 and isinstance(narrowest[0], nn.Module)):
            raise ConfigError(f"narrowest of {fuse.name} must be a pair (layer, its channels): got {narrowest!r:.80}.")
        self.fuse = fuse
        self._layer, channels = (narrowest[0],), narrowest[1]  # in a tuple, so that its weights are listed once
        self.head = seeded(lambda: nn.Linear(channels, classes), derive(seed, "class head") >> 1)

    @property
    def narrowest(self) -> nn.Module:
        """The layer that encodes the image."""
        return self._layer[0]

    def forward(self, x: Tensor, scheme: Scheme | None = None) -> tuple[Tensor, Tensor]:
        """Return F(x) and the head's logits (N, classes). The generator's weights are fake-quantized by ``scheme``."""
        seen: list[Tensor] = []
        hook = self.narrowest.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            output = quantized_call(self.fuse, x, scheme)
        finally:
            hook.remove()
        return output, self.classify(seen[0])

    def classify(self, encoded: Tensor) -> Tensor:
        """Return the head's logits (N, classes) for the narrowest layer's output (N, channels, H', W')."""
        return self.head(encoded.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class _Encoded(Exception):  # noqa: N818
    """The narrowest layer has run. The layers after it are skipped."""


class _Classifier(nn.Module):
    """The part of a generator that classifies images. It accepts any image size, without padding."""

    def __init__(self, taught: WithClassHead) -> None:
        super().__init__()
        self.taught = taught

    def forward(self, x: Tensor) -> Tensor:
        fuse, encoded = self.taught.fuse, list[Tensor]()

        def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
            encoded.append(output)
            raise _Encoded

        hook = self.taught.narrowest.register_forward_hook(stop)
        try:
            fuse.generator(fuse.symmetric(x))
        except _Encoded:
            return self.taught.classify(encoded[0])
        finally:
            hook.remove()
        raise ConfigError(f"the narrowest layer of generator {fuse.name} must run: it did not.")


def pretrain(
    fuse: NeuralFuse,
    data: DataSet,
    config: QatConfig | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> State:
    """Teach a NeuralFuse's generator to classify images, in place, without faults and without a base model.

    The result is a start for `train_fuse` with a class head. It fits all base models, rates and fault models.

    Args:
        fuse: The NeuralFuse. Its generator must encode the image.
        data: Training and validation images.
        config: The recipe, like that of a base model.
        out: Folder for checkpoints.
        resume: Whether to resume from the checkpoint in ``out``.
        listeners: Objects that are notified of steps and validations.
    Returns:
        The run's state. ``best_score`` is the best validation accuracy in percent.
    Raises:
        ConfigError: the generator does not encode the image.
    """
    config = config or QatConfig()
    taught = WithClassHead(fuse, classes=len(data.classes), seed=config.seed).to(fuse.scale.device)
    state = train_base(
        _Classifier(taught), data, config, input_range=fuse.input_range, out=out, resume=resume, listeners=listeners
    )
    fuse.trained = {"task": "classes", **config.to_config(), "data": data.to_config(), "accuracy": state.best_score}
    return state
