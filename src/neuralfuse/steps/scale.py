"""Scales: the networks, data sets and recipes that take the place of the paper's when a table is reproduced."""

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
    """Properties of a data set that are known before loading it.

    Attributes:
        channels: Number of color channels.
        size: Height and width of the images.
        classes: Number of classes.
        train: Number of training images.
        test: Number of test images.
    """

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
    """The data set of a step.

    Attributes:
        name: A key of `FACTS`.
        size: Height and width to resize images to; None for the original size.
    """

    name: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The replacement of one of the paper's data sets, with its networks and training recipes.

    Attributes:
        images: The data set.
        bases: Networks by the paper's names of base models.
        qat: Recipe of base models.
        eopm: Recipe of NeuralFuse modules.
        pretrain: Recipe by which generators are first taught the classes, once for all modules; None for none.
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
        name: ``full``, ``cpu``, ``smoke``, or the name of the user's file.
        title: The scale in a few words.
        recipes: Recipes by the paper's names of data sets.
        chips: Maximum number of unseen chips per evaluation.
        until: Width of the 95% interval of PA(NF), in points, at which an evaluation stops; None for all chips.
        test_images: Number of test images per evaluation; 0 for all.
        rate_factor: Factor by which the paper's rates are multiplied. Smaller networks have fewer cells to fail.
    """

    name: str
    title: str
    recipes: Mapping[str, Recipe] = field(repr=False)
    chips: int
    until: float | None = None
    test_images: int = 0
    rate_factor: float = 1.0

    def recipe(self, data: str) -> Recipe:
        """Return the recipe for one of the paper's data sets.

        Raises:
            ConfigError: the scale has no recipe for it.
        """
        require(data in self.recipes, f"scale {self.name} must have a recipe for {data}: [data.{data}] is missing.")
        return self.recipes[data]


_NUMBERS = ("chips", "until", "test_images", "rate_factor")
_PARTS = ("title", *_NUMBERS, "data", "bases", "qat", "pretrain", "eopm")
_OF_DATA = ("name", "image_size", "bases", "qat", "pretrain", "eopm")


def load_scale(name: str) -> Scale:
    """Return a scale by its name or TOML file.

    Raises:
        UnknownNameError: there is no such scale, or it names an unknown data set, network or option.
        ConfigError: the file is not TOML, or lacks an entry.
    """
    path = resources.files("neuralfuse.steps").joinpath("scales", f"{name}.toml") if name in SCALES else Path(name)
    if name not in SCALES and not (name.endswith(".toml") and Path(name).is_file()):
        raise unknown_name("scale", name, [*SCALES, "FILE.toml"])
    own = Path(name).stem
    require(
        name == own or own not in SCALES,
        f"the file of a scale must not have the name of a built-in one ({', '.join(SCALES)}): got {name}.",
    )
    try:
        return _scale(own, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scale {name} must be TOML: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"scale {name} must have a title, chips, [bases] and [data.NAME]: {error!r}.") from error


def _scale(name: str, table: dict[str, Any]) -> Scale:
    _check_names(f"entry of scale {name}", table, _PARTS)
    recipes = {}
    for data, own in table["data"].items():
        _check_names(f"entry of [data.{data}]", own, _OF_DATA)
        _check_names("data set", [own["name"]], FACTS)
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


_OF_ROWS = {"awp", "seed", "bits", "ber", "faults", "lam", "adversarial_bits"}  # set by tables and command-line options


def _options(table: str, options: dict[str, Any], config: type[LoopConfig]) -> dict[str, Any]:
    """Return a table's options after a check. Numbers get the types of their fields, so that 1 and 1.0 are the same."""
    types = {one.name: str(one.type) for one in fields(config) if one.name not in _OF_ROWS}
    _check_names(f"entry of {table}", options, types)
    return {key: float(value) if types[key] == "float" else value for key, value in options.items()}


def _check_names(kind: str, names: Any, legal: Any) -> None:
    for name in names:
        if name not in legal:
            raise unknown_name(kind, str(name), legal)
