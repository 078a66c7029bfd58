"""Scales: what stands for the paper's networks, data and recipes when a table is made anew."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from neuralfuse.config import EopmConfig, LoopConfig, QatConfig, base_recipe
from neuralfuse.errors import ConfigError, require, unknown_name
from neuralfuse.nets import base_spec

SCALES = ("full", "cpu", "smoke")


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is loaded: pixels, classes, images to train on and to test on."""

    channels: int
    size: int
    classes: int
    train: int
    test: int


FACTS = {
    "digits": Facts(1, 8, 10, 1132, 539),
    "cifar10": Facts(3, 32, 10, 45_000, 10_000),
    "cifar100": Facts(3, 32, 100, 45_000, 10_000),
    "gtsrb": Facts(3, 32, 43, 35_249, 12_630),
    "imagenet10": Facts(3, 224, 10, 11_700, 500),
}


@dataclass(frozen=True)
class ImageSpec:
    """A data set as a step wants it.

    Attributes:
        name: A key of `FACTS`.
        size: Height and width to resize to; None for the set's own.
    """

    name: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What stands for one of the paper's data sets: images, networks by the paper's names, recipes.

    With ``pretrain``, generators are first taught the classes, once for all modules.
    """

    images: ImageSpec
    bases: Mapping[str, str]
    qat: QatConfig
    eopm: EopmConfig
    pretrain: QatConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A scale, as its TOML file describes it.

    Attributes:
        name: ``full``, ``cpu``, ``smoke``, or the file's own.
        title: In a few words.
        recipes: By the paper's names of the data sets.
        chips: Unseen chips of an evaluation, at most.
        until: Width of the 95% interval of PA(NF) at which an evaluation stops, in points; None for all chips.
        test_images: Test images of an evaluation; 0 for all.
        rate_factor: By how much the paper's rates are multiplied: networks of fewer cells need more of them faulty.
    """

    name: str
    title: str
    recipes: Mapping[str, Recipe] = field(repr=False)
    chips: int
    until: float | None = None
    test_images: int = 0
    rate_factor: float = 1.0

    def recipe(self, data: str) -> Recipe:
        """Return what stands for one of the paper's data sets.

        Raises:
            ConfigError: the scale has nothing for it.
        """
        require(data in self.recipes, f"scale {self.name} must say what stands for {data}: [data.{data}] is missing.")
        return self.recipes[data]


_NUMBERS = ("chips", "until", "test_images", "rate_factor")
_PARTS = ("title", *_NUMBERS, "data", "bases", "qat", "pretrain", "eopm")
_OF_DATA = ("name", "image_size", "bases", "qat", "pretrain", "eopm")


def load_scale(name: str) -> Scale:
    """Return a scale by its name or TOML file.

    Raises:
        UnknownNameError: there is no such scale, or it names an unknown data set, network or option.
        ConfigError: the file is no TOML, or lacks something.
    """
    path = resources.files("neuralfuse.steps").joinpath("scales", f"{name}.toml") if name in SCALES else Path(name)
    if name not in SCALES and not (name.endswith(".toml") and Path(name).is_file()):
        raise unknown_name("scale", name, [*SCALES, "FILE.toml"])
    own = Path(name).stem
    require(name == own or own not in SCALES, f"a scale of your own must have a name of its own: got {name}.")
    try:
        return _scale(own, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scale {name} must be TOML: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"scale {name} must have a title, chips, [bases] and [data.NAME]: {error!r}.") from error


def _scale(name: str, table: dict[str, Any]) -> Scale:
    _known(f"entry of scale {name}", table, _PARTS)
    recipes = {}
    for data, own in table["data"].items():
        _known(f"entry of [data.{data}]", own, _OF_DATA)
        _known("data set", [own["name"]], FACTS)
        bases = {**table["bases"], **own.get("bases", {})}
        for network in bases.values():
            base_spec(network)
        qat = {**table.get("qat", {}), **own.get("qat", {})}
        base = qat.pop("recipe", "short")
        pretrain = {**table.get("pretrain", {}), **own.get("pretrain", {})}
        recipes[data] = Recipe(
            images=ImageSpec(own["name"], own.get("image_size")),
            bases=bases,
            qat=base_recipe(base, **_options("[qat]", qat, QatConfig)),
            eopm=EopmConfig(**_options("[eopm]", {**table.get("eopm", {}), **own.get("eopm", {})}, EopmConfig)),
            pretrain=QatConfig(**_options("[pretrain]", pretrain, QatConfig)) if pretrain else None,
        )
    numbers = {key: table[key] for key in _NUMBERS if key in table}
    for key, value in numbers.items():
        whole = key in ("chips", "test_images")
        legal = (
            isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        least = 0 if key == "test_images" else 1 if whole else 1e-9
        wanted = f"a whole number of at least {least}" if whole else "a positive number"
        require(legal and value >= least, f"{key} of scale {name} must be {wanted}: got {value!r}.")
        numbers[key] = value if whole else float(value)
    return Scale(name=name, title=str(table["title"]), recipes=recipes, **numbers)


_OF_ROWS = {"awp", "seed", "bits", "ber", "faults", "lam", "adversarial_bits"}  # what tables and options decide


def _options(table: str, options: dict[str, Any], config: type[LoopConfig]) -> dict[str, Any]:
    """Return a table's options if they are legal, with numbers as their fields have them: 1 and 1.0 are one address."""
    types = {one.name: str(one.type) for one in fields(config) if one.name not in _OF_ROWS}
    _known(f"entry of {table}", options, types)
    return {key: float(value) if types[key] == "float" else value for key, value in options.items()}


def _known(kind: str, names: Any, legal: Any) -> None:
    for name in names:
        if name not in legal:
            raise unknown_name(kind, str(name), legal)
