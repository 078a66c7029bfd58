"""How a deployed model runs: the fastest way that gives the same outputs as the original module."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neuralfuse.config import Running
from neuralfuse.errors import ConfigError
from neuralfuse.memory.activations import ActivationMemory
from neuralfuse.memory.floats import FloatWeights
from neuralfuse.memory.folding import fold
from neuralfuse.memory.weights import WeightMemory
from neuralfuse.memory.workers import threads_at_once
from neuralfuse.quant import Scheme

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PIXELS = 1 << 16  # pixels per pass on a CPU; with twice as many, tensors no longer fit the allocator's heap
Out = TypeVar("Out")


@dataclass(frozen=True)
class _Way:
    """One way to run a model: a module, its weights, its memory format, and its compiled form if there is one."""

    module: nn.Module
    weights: FloatWeights
    frozen: dict[str, Tensor]
    last: bool
    compiled: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None


class _Copy(threading.local):
    """Each thread's own copy of the module, with shared parameters."""

    module: nn.Module | None = None


class Executor:
    """Runs a module on parameters read from a memory, in any number of threads.

    Args:
        model: The original module, in eval mode; not modified.
        memory: The stored weights.
        frozen: The parameters that are not stored.
        running: Which optimizations are allowed.
        activations: The activation memory without faults, if activations are stored.
    """

    def __init__(
        self,
        model: nn.Module,
        memory: WeightMemory,
        frozen: dict[str, Tensor],
        running: Running,
        activations: ActivationMemory | None,
    ) -> None:
        self._model, self._memory, self._frozen = model, memory, frozen
        self._running, self._activations = running, activations
        floats = [tensor.dtype for tensor in model.parameters() if tensor.dtype.is_floating_point]
        self._dtype = floats[0] if floats else None
        self._folded = None
        # Folding would change the stored outputs of convolutions, and floating-point words might overflow.
        if running.fold and activations is None and isinstance(memory.scheme, Scheme):
            self._folded = fold(model, [part.stored.parameter for part in memory.parts if part.adapter is None])
        self._way: _Way | None = None
        self._alone = running.compile  # a module of torch.compile runs in one thread
        self._fits: int | None = None
        self._choosing = threading.Lock()
        self._thread, self._copy = threading.get_ident(), _Copy()
        self._pristine: nn.Module | None = None  # the module that threads copy; None if they cannot
        self._only_one = threading.Lock()

    def weights(self, x: Tensor | None = None) -> FloatWeights:
        """Return the weights that the model runs on. The first inputs decide which.

        Raises:
            ConfigError: ``x`` is None and the model has not run yet.
        """
        way = self._way if x is None else self._chosen(x)
        if way is None:
            raise ConfigError("a deployed model must have run once before it can give its weights: call it first.")
        return way.weights

    def run(self, x: Tensor, parameters: dict[str, Tensor], activations: ActivationMemory | None, read: int) -> Tensor:
        """Run the module on stored parameters from `weights`. Return its output in the dtype of ``x``."""
        with self._types(x.device):
            return self._run(self._chosen(x), x, parameters, activations, read)

    def as_handed_over(self, x: Tensor) -> Tensor:
        """Return the output of the original module."""
        self._model.eval()
        return torch.cat(self.in_parts(x, lambda rows: self._model(self._inputs(x[rows])).to(x.dtype)))

    def at_once(self, x: Tensor) -> int:
        """Return how many threads may run the model at the same time, on inputs like ``x``."""
        self._chosen(x)
        return 1 if self._alone or x.device.type != "cpu" else threads_at_once(torch.get_num_threads())

    def in_parts(self, x: Tensor, function: Callable[[slice], Out]) -> list[Out]:
        """Call a function on one micro-batch of rows after another, and return its results.

        If the device's memory does not hold a micro-batch, its size is halved, for later calls too.
        """
        results: list[Out] = []
        start, rows = 0, len(x)
        while start < len(x) or not results:
            rows = min(self._micro_batch(x), max(1, len(x) - start))
            try:
                results.append(function(slice(start, start + rows)))
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
                self._fits = rows // 2
            else:
                start += rows
        return results

    def _run(
        self, way: _Way, x: Tensor, stored: dict[str, Tensor], activations: ActivationMemory | None, read: int
    ) -> Tensor:
        if self._way is None or threading.get_ident() == self._thread:
            return self._run_on(way.module, way, x, stored, activations, read)
        if self._pristine is None:  # the shared module runs in one thread at a time
            with self._only_one:
                return self._run_on(way.module, way, x, stored, activations, read)
        if self._copy.module is None:
            self._copy.module = _structure(self._pristine)
        return self._run_on(self._copy.module, way, x, stored, activations, read)

    def _run_on(
        self,
        module: nn.Module,
        way: _Way,
        x: Tensor,
        stored: dict[str, Tensor],
        activations: ActivationMemory | None,
        read: int,
    ) -> Tensor:
        module, parameters = module.eval(), {**way.frozen, **stored}

        def part(rows: slice) -> Tensor:
            inputs = self._inputs(x[rows])
            if way.last and x.dim() in _LAST:
                inputs = inputs.contiguous(memory_format=_LAST[x.dim()])
            if activations is not None:
                with activations.attached(activations.choice.modules(module), read):
                    output = functional_call(module, parameters, (activations.input(inputs, read),))
            elif way.compiled is not None:
                output = way.compiled(parameters, inputs)
            else:
                output = functional_call(module, parameters, (inputs,))
            return output.to(x.dtype)  # type: ignore[no-any-return]

        outputs = self.in_parts(x, part)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _micro_batch(self, x: Tensor) -> int:
        rows = self._running.micro_batch
        if rows is None and x.device.type == "cpu" and x.dim() > 2:
            rows = max(8, _PIXELS // max(1, math.prod(x.shape[2:])))
        return min(rows or len(x), self._fits or len(x)) or 1

    def _inputs(self, x: Tensor) -> Tensor:
        return x if self._dtype is None else x.to(self._dtype)

    def _types(self, device: torch.device) -> AbstractContextManager[None]:
        if self._running.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, _AUTOCAST[self._running.autocast])

    def _chosen(self, x: Tensor) -> _Way:
        return self._way or self._choose(x)

    def _choose(self, x: Tensor) -> _Way:
        """Choose the fastest way that gives the original outputs on the first two inputs. Later calls keep it."""
        with self._choosing, torch.inference_mode(False), torch.no_grad():  # weights must work with gradients, too
            if self._way is None:
                plain, sample = _Way(self._model, FloatWeights(self._memory, {}), self._frozen, False), x[:2].detach()
                random = torch.get_rng_state()
                wanted = self._run(plain, sample, plain.weights.clean, self._activations, 0)
                self._alone |= not torch.equal(random, torch.get_rng_state())  # threads would share its random numbers
                chosen = next((way for way in self._ways(x) if self._agrees(way, sample, wanted)), plain)
                if self._running.compile:
                    chosen = replace(chosen, compiled=_compiled(chosen.module))
                self._pristine = self._reliable_copy(chosen, sample)
                self._alone |= self._pristine is None
                self._way, self._folded = chosen, None
            return self._way

    def _ways(self, x: Tensor) -> Iterator[_Way]:
        """Yield the ways to run on inputs like ``x``, except the plain way, fastest first."""
        for last in (True, False) if self._running.channels_last and x.dim() in _LAST else (False,):
            if self._folded is not None:
                module = self._folded.module
                known = dict(module.named_parameters(remove_duplicate=False))
                frozen = {name: tensor for name, tensor in self._frozen.items() if name in known}
                weights = FloatWeights(self._memory, self._folded.scales, channels_last=last)
                yield _Way(module, weights, frozen, last)
            if last:
                yield _Way(self._model, FloatWeights(self._memory, {}, channels_last=True), self._frozen, True)

    def _agrees(self, way: _Way, sample: Tensor, wanted: Tensor) -> bool:
        try:
            got = self._run(way, sample, way.weights.clean, self._activations, 0)
        except Exception:  # a user's model may refuse a memory format with any exception
            return False
        error = 1e-3 if wanted.dtype in (torch.float32, torch.float64) else 2e-2
        most = float(wanted.abs().nan_to_num(0.0, 0.0, 0.0).max()) if wanted.numel() else 0.0
        return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=error, atol=error * most, equal_nan=True)

    def _reliable_copy(self, way: _Way, sample: Tensor) -> nn.Module | None:
        """Return a copy of a way's module for threads. None if the copy still reads the original's parameters."""
        try:
            other = way.weights.times(-0.5)
            twin = _structure(way.module)
            wanted, got = (
                self._run_on(module, way, sample, other, self._activations, 0) for module in (way.module, twin)
            )
            return _structure(way.module) if torch.allclose(got, wanted, equal_nan=True) else None
        except Exception:  # a user's module may fail to copy in any way
            return None


def _structure(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def _compiled(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    call = torch.compile(lambda parameters, inputs: functional_call(module, parameters, (inputs,)))

    def checked(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        try:
            output: Tensor = call(parameters, inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise ConfigError(f"compile must be left out here: torch.compile failed ({reason}).") from error
        return output

    return checked
