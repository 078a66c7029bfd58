"""Scales: what stands for the paper's networks, data and recipes when a table is made anew."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from neuralfuse.config import EopmConfig, QatConfig, base_recipe
from neuralfuse.errors import ConfigError, require, unknown_name
from neuralfuse.nets import BASE_MODELS

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
class Images:
    """A data set as a step wants it.

    Attributes:
        name: A key of `FACTS`.
        size: Height and width to resize to; None for the set's own.
    """

    name: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stands for one of the paper's data sets: images, networks by the paper's names, recipes."""

    images: Images
    bases: Mapping[str, str]
    qat: QatConfig
    eopm: EopmConfig


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A scale, as its TOML file describes it.

    Attributes:
        name: ``full``, ``cpu``, ``smoke``, or the file's own.
        title: In a few words.
        settings: By the paper's names of the data sets.
        chips: Unseen chips of an evaluation, at most.
        until: Width of the 95% interval of PA(NF) at which an evaluation stops, in points; None for all chips.
        test_images: Test images of an evaluation; 0 for all.
        rate_factor: By how much the paper's rates are multiplied: networks of fewer cells need more of them faulty.
    """

    name: str
    title: str
    settings: Mapping[str, Setting] = field(repr=False)
    chips: int
    until: float | None = None
    test_images: int = 0
    rate_factor: float = 1.0

    def setting(self, data: str) -> Setting:
        """Return what stands for one of the paper's data sets.

        Raises:
            ConfigError: the scale has nothing for it.
        """
        require(data in self.settings, f"scale {self.name} must say what stands for {data}: [data.{data}] is missing.")
        return self.settings[data]


_NUMBERS = ("chips", "until", "test_images", "rate_factor")
_PARTS = ("title", *_NUMBERS, "data", "bases", "qat", "eopm")
_OF_DATA = ("name", "image_size", "bases", "qat", "eopm")


def load_scale(name: str) -> Scale:
    """Return a scale by its name or TOML file.

    Raises:
        UnknownNameError: there is no such scale, or it names an unknown data set, network or option.
        ConfigError: the file is no TOML, or lacks something.
    """
    if name in SCALES:
        text = resources.files("neuralfuse.reproduce").joinpath("scales", f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml") and Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise unknown_name("scale", name, [*SCALES, "FILE.toml"])
    try:
        table = tomllib.loads(text)
        return _scale(Path(name).stem, table)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"scale {name} must be TOML: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"scale {name} must have title, chips, [bases] and [data.NAME] with a name: {error!r}."
        ) from error


def _scale(name: str, table: dict[str, Any]) -> Scale:
    _known(f"entry of scale {name}", table, _PARTS)
    settings = {}
    for data, own in table["data"].items():
        _known(f"entry of [data.{data}]", own, _OF_DATA)
        _known("data set", [own["name"]], FACTS)
        bases = {**table["bases"], **own.get("bases", {})}
        _known("base model", bases.values(), BASE_MODELS)
        settings[data] = Setting(
            images=Images(own["name"], own.get("image_size")),
            bases=bases,
            qat=_qat({**table.get("qat", {}), **own.get("qat", {})}),
            eopm=_eopm({**table.get("eopm", {}), **own.get("eopm", {})}),
        )
    numbers = {key: table[key] for key in _NUMBERS if key in table}
    for key, value in numbers.items():
        least = 1 if key == "chips" else 0
        legal = isinstance(value, int | float) and not isinstance(value, bool) and value >= least
        require(legal, f"{key} of scale {name} must be a number of at least {least}: got {value!r}.")
    return Scale(name=name, title=str(table["title"]), settings=settings, **numbers)


def _qat(options: dict[str, Any]) -> QatConfig:
    recipe = options.pop("recipe", "short")
    _known("entry of [qat]", options, [one.name for one in fields(QatConfig)])
    return base_recipe(recipe, **options)


def _eopm(options: dict[str, Any]) -> EopmConfig:
    _known("entry of [eopm]", options, [one.name for one in fields(EopmConfig)])
    return EopmConfig(**options)


def _known(kind: str, names: Any, legal: Any) -> None:
    for name in names:
        if name not in legal:
            raise unknown_name(kind, str(name), legal)
