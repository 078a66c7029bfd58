"""Trained base models on disk: a folder with ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from neuralfuse.errors import ConfigError, FileFormatError
from neuralfuse.files import load_weights, read_json, write_model
from neuralfuse.nets.base import BaseModel, base_model
from neuralfuse.plugins import load
from neuralfuse.quant import Scheme
from neuralfuse.ranges import InputRange

SCHEMA = "neuralfuse/base/1"


def save_base(model: BaseModel, folder: Path | str) -> None:
    """Write a base model of the registry to a folder."""
    folder = Path(folder)
    config: dict[str, Any] = {
        "schema": SCHEMA,
        "name": model.name,
        "classes": model.classes,
        "channels": model.channels,
        "image_size": list(model.image_size),
        "scheme": model.scheme.to_config(),
        "input_range": model.input_range.to_config(),
        "trained": model.trained,
    }
    write_model(folder, model.module, config)


def load_base(folder: Path | str) -> BaseModel:
    """Read a base model that `save_base` wrote.

    Raises:
        FileFormatError: the folder holds no base model, or its weights do not fit its config.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = read_json(path, SCHEMA)
    try:
        image_size = (int(config["image_size"][0]), int(config["image_size"][1]))
        shape = {"classes": int(config["classes"]), "channels": int(config["channels"])}
        name, trained = str(config["name"]), dict(config["trained"])
        scheme = Scheme(**config["scheme"])
        input_range = InputRange.from_config(config["input_range"])
        module = base_model(name, **shape, image_size=image_size, seed=0)
    except (KeyError, TypeError, IndexError, ValueError, LookupError) as error:
        raise FileFormatError(f"{path} must describe a base model: {error!r}.") from error
    load_weights(module, folder / "model.safetensors", f"{name} with {shape['classes']} classes")
    return BaseModel(
        name=name, module=module.eval(), image_size=image_size, scheme=scheme, input_range=input_range,
        trained=trained, **shape,
    )  # fmt: skip


def load_factory(reference: str, *, classes: int, channels: int, image_size: tuple[int, int]) -> BaseModel:
    """Call a user's ``package.module:factory`` and return its module as a base model.

    Raises:
        ConfigError: the factory cannot be imported, fails, or returns no module.
    """
    factory = load(reference, what="--base")
    try:
        module = factory()
    except Exception as error:  # the code is the user's, and may raise anything
        raise ConfigError(f"--base {reference} must name a factory that runs without arguments: {error}.") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--base {reference} must return an nn.Module: got {type(module).__name__}.")
    return BaseModel(
        name=reference, module=module.eval(), classes=classes, channels=channels, image_size=image_size
    )  # fmt: skip
