"""The methods by name, and the parser for a method, a chain of methods, or a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from torch import nn

from neuralfuse.errors import ConfigError, require, unknown_name
from neuralfuse.methods.activation import ClippedActivations
from neuralfuse.methods.base import Method, NoProtection
from neuralfuse.methods.calibrated import Calibrated, Tuned
from neuralfuse.methods.fused import Fused, Given
from neuralfuse.methods.normalization import BatchStatistics, Reestimated
from neuralfuse.methods.retrained import AdversarialWeights, RandBet, Smaller, WeightClipping
from neuralfuse.methods.storage import ClippedQuantization, ProtectedBits, ZeroedWords
from neuralfuse.nets import GENERATORS, plugins
from neuralfuse.plugins import code_digest, load

METHODS: dict[str, type[Method]] = {
    one.name: one
    for one in (
        NoProtection, Fused, Given, Calibrated, Tuned, BatchStatistics, Reestimated, ClippedActivations,
        ClippedQuantization, ProtectedBits, ZeroedWords, WeightClipping, RandBet, AdversarialWeights, Smaller,
    )
}  # fmt: skip


def parse(text: str, *, allow_code: bool = False) -> tuple[Method, ...]:
    """Return a chain of methods, in order, from text such as ``randbet:limit=0.2+convl``.

    Each part is a name of `METHODS`, a generator's name (for a NeuralFuse with it), or ``package.module:thing``: a
    user's own subclass of `Method` or factory of generators. Options follow a colon: ``name:option=value,...``.

    Args:
        text: The methods, separated by ``+``.
        allow_code: Whether the code of a user's own generator in a saved module (``given``) may be run.
    Raises:
        UnknownNameError: there is no such method, or the method has no such option.
        ConfigError: an option's value is illegal, a user's own method cannot be imported, or the methods cannot be
            combined.
    """
    chain = tuple(_one(part.strip(), allow_code) for part in text.split("+"))
    late = next((method for method in chain[1:] if method.first), None)
    require(late is None, f"a method that retrains the model must come first: got {text!r}.")
    fused = [method for method in chain if method.transforms_inputs]
    require(len(fused) <= 1, f"there must be at most one NeuralFuse: got {text!r}.")
    for place, method in enumerate(chain):
        behind = any(one.transforms_inputs for one in chain[:place])
        require(
            behind or not method.follows_transform,
            f"{method.name} must come after a NeuralFuse, e.g. unetl+{method.name}: got {text!r}.",
        )
    return chain


def _one(text: str, allow_code: bool) -> Method:
    name, _, rest = text.partition(":")
    if name in GENERATORS or (name in plugins() and name not in METHODS):
        require(not rest, f"a generator has no options here: got {text!r}.")
        return Fused(generator=name)
    own, _, options = rest.partition(":")
    if own and "=" not in own:
        return _users_own(f"{name}:{own}", options)
    if name not in METHODS:
        raise unknown_name("method", name, [*METHODS, *GENERATORS, *plugins(), "package.module:thing"])
    word = {"allow_code": allow_code} if METHODS[name] is Given else {}
    return METHODS[name](**_options(METHODS[name], rest), **word)


def _options(method: type[Method], text: str) -> dict[str, Any]:
    hints = get_type_hints(method)
    types = {one.name: hints[one.name] for one in fields(method) if one.metadata.get("option", True)}
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in types:
            raise unknown_name(f"option of {method.name}", name, types or ["none"])
        try:
            found[name] = {int: int, float: float}.get(types[name], str)(value)
        except ValueError as error:
            wanted = types[name].__name__
            raise ConfigError(f"{name} of {method.name} must be of type {wanted}: got {value!r}.") from error
    return found


def _users_own(reference: str, options: str) -> Method:
    """Return a user's own method, or a NeuralFuse with a user's own generator, from ``package.module:thing``."""
    where, found = f"method {reference}", load(reference, what="method")
    if callable(found) and (not isinstance(found, type) or issubclass(found, nn.Module)):
        require(not options, f"a generator has no options here: got {reference}:{options}.")
        return Fused(generator=reference)
    whole = isinstance(found, type) and issubclass(found, Method) and not inspect.isabstract(found)
    require(
        whole,
        f"{where} must be a subclass of neuralfuse.methods.Method that implements protect, or a generator's "
        "factory(channels, image_size).",
    )
    for name in ("name", "needs"):
        require(hasattr(found, name), f"{where} must have the class attribute {name}.")
    bare = [one.name for one in fields(found) if one.default is MISSING and one.default_factory is MISSING]
    require(not bare, f"{where} must have a default for every option: {', '.join(bare)} has none.")
    return found(**_options(found, options))  # type: ignore[no-any-return]


def identity(method: Method) -> dict[str, Any]:
    """Return everything that a method's result depends on, as JSON: its options, and the code of a user's own."""
    kind = type(method)
    if kind.__module__.partition(".")[0] == "neuralfuse":
        return method.to_config()
    return {**method.to_config(), "class": kind.__qualname__, "code": code_digest(kind)}


def needs(methods: Iterable[Method]) -> list[str]:
    """Return the kinds of access that methods need, without duplicates."""
    return list(dict.fromkeys(access for method in methods for access in method.needs))
