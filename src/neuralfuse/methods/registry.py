"""The methods by name, and how to ask for one, for several put together, and for a user's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from neuralfuse.errors import ConfigError, unknown_name
from neuralfuse.methods.activation import ClippedActivations
from neuralfuse.methods.base import Method, NoProtection
from neuralfuse.methods.normalization import BatchStatistics, Reestimated
from neuralfuse.methods.storage import ClippedQuantization, ProtectedBits, ZeroedWords
from neuralfuse.methods.trained import AdversarialWeights, Fused, RandBet, Smaller, WeightClipping
from neuralfuse.nets import GENERATORS

METHODS: dict[str, type[Method]] = {
    one.name: one
    for one in (
        NoProtection, Fused, BatchStatistics, Reestimated, ClippedActivations, ClippedQuantization, ProtectedBits,
        ZeroedWords, WeightClipping, RandBet, AdversarialWeights, Smaller,
    )
}  # fmt: skip


def parse(text: str) -> tuple[Method, ...]:
    """Return methods that act one after the other, from text such as ``randbet:limit=0.2+convl``.

    Each is a name of `METHODS`, a generator's name (NeuralFuse with it), or ``package.module:Class`` of a user's own,
    with options after a colon: ``name:option=value,option=value``.

    Raises:
        UnknownNameError: there is no such method, or it has no such option.
        ConfigError: an option's value is not a number, or a user's class cannot be had.
    """
    return tuple(_one(part.strip()) for part in text.split("+"))


def _one(text: str) -> Method:
    name, _, rest = text.partition(":")
    if name in GENERATORS:
        return Fused(generator=name)
    own, _, options = rest.partition(":")
    if own and "=" not in own:
        made = _users_own(name, own)
        return made(**_options(made, options))
    if name not in METHODS:
        raise unknown_name("method", name, [*METHODS, *GENERATORS, "package.module:Class"])
    return METHODS[name](**_options(METHODS[name], rest))


def _options(method: type[Method], text: str) -> dict[str, Any]:
    known = {one.name: str(one.type) for one in fields(method)}
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise unknown_name(f"option of {method.name}", name, known or ["none"])
        try:
            found[name] = {"int": int, "float": float}.get(known[name], str)(value)
        except ValueError as error:
            raise ConfigError(f"{name} of {method.name} must be of type {known[name]}: got {value!r}.") from error
    return found


def _users_own(module: str, attribute: str) -> type[Method]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the code is the user's, and may raise anything
        raise ConfigError(f"method {module}:{attribute} must be a class that can be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method {module}:{attribute} must be a subclass of neuralfuse.methods.Method.")
    return found


def needs(methods: Iterable[Method]) -> list[str]:
    """Return what methods need access to, each once."""
    return list(dict.fromkeys(access for method in methods for access in method.needs))
