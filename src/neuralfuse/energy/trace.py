"""Trace one pass of a model over one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from neuralfuse.energy.operations import Trace
from neuralfuse.energy.paper import paper_macs
from neuralfuse.energy.recorder import Recorder
from neuralfuse.errors import ConfigError, require
from neuralfuse.quant import DEFAULT_LAYERS, Layers


def trace(model: nn.Module, image: Tensor, layers: Layers = DEFAULT_LAYERS) -> Trace:
    """Run a model on one image, and return the operations of the pass.

    Args:
        model: Any module, also on the meta device, where a pass costs nothing.
        image: A batch of one image, or of any other input, on the model's device.
        layers: Which weights the memory stores.
    Raises:
        ConfigError: there is not exactly one image, the model does not run on it, or no layer can be counted.
    """
    require(image.shape[:1] == (1,), f"the batch must hold exactly one image, (1, ...): got {tuple(image.shape)}.")
    stored = layers.select(model)
    made = Trace(
        parameters=sum(one.numel() for one in model.parameters()), words=sum(one.tensor.numel() for one in stored)
    )
    training = {module: module.training for module in model.modules()}
    recorder = Recorder(made, model, image, {one.tensor: one.name for one in stored})
    try:
        model.eval()
        with torch.no_grad(), _plain_kernels(), _hooks(model, recorder), recorder:
            model(image)
    except Exception as error:  # the user's model may raise anything
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the model must run on one image of shape {tuple(image.shape)}: {text}") from error
    finally:
        for module, was in training.items():
            module.training = was
    missed = {one.layer for one in made.unknown}
    for one in stored:
        if one.name not in recorder.read | missed:
            made.add_unknown(one.name, "no operation was seen to read it")
    if not any(operation.weight for operation in made.operations):
        what = "; ".join(f"{one.layer}: {one.reason}" for one in made.unknown)
        raise ConfigError(f"the model must have at least one layer that can be counted: got none ({what}).")
    return made


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Make attention and recurrent layers run as matrix products instead of fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _hooks(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Report the running module to the recorder, and count MACs in the paper's convention, module by module."""

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        recorder.modules.pop()
        own, made = paper_macs(module, (*args, *kwargs.values()), output), recorder.trace
        made.paper_macs = None if own is None or made.paper_macs is None else made.paper_macs + own

    def before(name: str, module: nn.Module) -> Any:
        return module.register_forward_pre_hook(lambda *_: recorder.modules.append((name, module)))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(before(name, module).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield
