"""A comparison of methods for one model: its options, its steps and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from neuralfuse.compare.steps import ComparisonStep, GivenBase, ProtectionStep, digest_of
from neuralfuse.errors import require, unknown_name
from neuralfuse.evaluation import mean, sample_sd, t_interval
from neuralfuse.faults import FaultModel, default_curve, fault_model
from neuralfuse.methods import Method, needs, parse
from neuralfuse.nets import base_spec, load_base
from neuralfuse.nets.base import check_base
from neuralfuse.runs import command
from neuralfuse.steps.provenance import Provenance
from neuralfuse.steps.scale import FACTS, Recipe, Scale
from neuralfuse.steps.store import address
from neuralfuse.steps.trainings import BaseStep
from neuralfuse.steps.work import Work
from neuralfuse.steps.workspace import Workspace

SCHEMA = "neuralfuse/comparison/1"
NONE = "none"
USUAL = (
    NONE, "convl", "convs", "deconvl", "deconvs", "unetl", "unets", "uip", "batch-statistics", "reestimate",
    "clip-activations", "clip-quantization", "protected-bits", "zero-faulty-words", "weight-clipping", "randbet", "awp",
    "smaller",
)  # fmt: skip
"""The default methods of a comparison."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of methods on the same chips.

    Attributes:
        scale: The scale, which defines data sets, networks and recipes.
        data: A data set of the scale, by the paper's name or its own.
        base: A base model: the paper's name, a network's name, or the folder of a trained model.
        methods: Methods in the syntax of `neuralfuse.methods.parse`. The unprotected baseline is always included,
            first.
        faults: Names of fault models.
        rates: Shares of faulty cells (of inverted bits, for ``flip``) to measure at.
        train_rate: The rate that methods prepare for.
        seed: Seed of all trainings.
        chips: Number of unseen chips, the same for all methods; 0 for the scale's number.
        allow_code: Whether the code of a user's own generator in a saved module may be run.
    """

    scale: Scale
    data: str
    base: str
    methods: Sequence[str]
    faults: Sequence[str]
    rates: Sequence[float]
    train_rate: float
    seed: int = 0
    chips: int = 0
    allow_code: bool = False

    def __post_init__(self) -> None:
        for name in self.faults:
            fault_model(name, ber=self.train_rate)
        for name in ("faults", "rates"):
            require(len(getattr(self, name)) > 0, f"{name} must have at least one value: got none.")
        for rate in self.rates:
            fault_model(self.faults[0], ber=rate)
        for method in (one for chain in self.chains.values() for one in chain):
            method.check_rate(self.train_rate)

    @property
    def recipe(self) -> Recipe:
        """The data set's images, networks and recipes at this scale."""
        recipes = self.scale.recipes
        own = {one.images.name: name for name, one in recipes.items()}
        name = self.data if self.data in recipes else own.get(self.data)
        if name is None:
            raise unknown_name(f"data set of scale {self.scale.name}", self.data, [*recipes, *own])
        return recipes[name]

    @cached_property
    def base_step(self) -> BaseStep:
        """The step that trains the base model, or copies the given one."""
        recipe, folder = self.recipe, Path(self.base)
        if folder.is_dir():
            given, facts = load_base(folder), FACTS[recipe.images.name]
            check_base(given, classes=facts.classes, channels=facts.channels)
            size = (recipe.images.size or facts.size,) * 2
            require(
                given.image_size == size,
                f"base model and data must have images of the same size: got {given.image_size} and {size}.",
            )
            digest = digest_of(folder)
            return GivenBase(recipe.images, given.name, recipe.qat, folder=folder.absolute(), digest=digest)
        network = recipe.bases.get(self.base, self.base)
        base_spec(network)
        return BaseStep(recipe.images, network, replace(recipe.qat, seed=self.seed))

    @property
    def name(self) -> str:
        """The name of the comparison's files, without suffix."""
        config = {**self._config, "base": self.base_step.address, "methods": list(self.chains), "faults": self.faults}
        own = address("", {**config, "rates": list(self.rates)})[1:7]
        return f"comparison-{self.base_step.network}-{self.recipe.images.name}-{own}".replace("@", "-")

    @cached_property
    def chains(self) -> dict[str, tuple[Method, ...]]:
        """The chains of methods by their texts. The unprotected baseline is first."""
        return {text: parse(text, allow_code=self.allow_code) for text in dict.fromkeys((NONE, *self.methods))}

    def protection(self, chain: tuple[Method, ...], faults: str) -> ProtectionStep:
        """Return the step that protects the base model by a chain of methods."""
        recipe = self.recipe
        eopm = replace(recipe.eopm, seed=self.seed)
        pretrain = None if recipe.pretrain is None else replace(recipe.pretrain, seed=self.seed)
        return ProtectionStep(self.base_step, chain, fault_model(faults, ber=self.train_rate), eopm, pretrain)

    @cached_property
    def rows(self) -> list[tuple[str, ComparisonStep]]:
        """The rows: the text of a chain of methods, and the step that measures the chain."""
        return [
            (
                text,
                ComparisonStep(
                    self.protection(chain, faults), fault_model(faults, ber=rate), self.measured, self.scale.test_images
                ),
            )
            for faults in self.faults
            for rate in self.rates
            for text, chain in self.chains.items()
        ]

    @property
    def measured(self) -> int:
        """Number of chips to measure."""
        return self.chips or self.scale.chips

    @property
    def _config(self) -> dict[str, Any]:
        return {
            "scale": self.scale.name,
            "scale_title": self.scale.title,
            "base": self.base_step.network,
            "given": isinstance(self.base_step, GivenBase),
            "train_rate": self.train_rate,
            "chips": self.measured,
            "test_images": self.scale.test_images,
            "seed": self.seed,
        }

    def work(self, workspace: Workspace) -> Work:
        """Return the comparison's steps as work in a workspace."""
        return Work.of([step for _, step in self.rows], workspace)

    def record(self, workspace: Workspace) -> dict[str, Any]:
        """Return the comparison's record so far. ``measured`` is None in rows that are not measured yet."""
        provenance, rows = Provenance(workspace), []
        timings: dict[str, dict[str, float]] = {}
        plain: dict[FaultModel, tuple[Any, Any]] = {}  # records of the unprotected baseline, by fault model
        for text, step in self.rows:
            found = provenance.record(step.protection), provenance.record(step)
            if text == NONE:
                plain[step.faults] = found
            records = [one for one in (*found, *plain[step.faults]) if one is not None]
            if len(records) == 4:
                timings[step.address] = {"time": _slowdown(records[0])}
            rows.append(
                {
                    "method": text,
                    "needs": needs(step.protection.methods),
                    "stages": [method.to_config() for method in step.protection.methods],
                    "faults": step.faults.kind,
                    "ber": step.faults.ber,
                    "measured": _values(step.faults.ber, *records) if len(records) == 4 else None,
                    "step": step.address,
                }
            )
        base = provenance.record(self.base_step)
        return {
            "schema": SCHEMA,
            "config": self._config,
            "data": None if base is None else base["result"]["config"]["data"],
            "rows": rows,
            "steps": provenance.configs,
            "run": {**command(), **provenance.runs, "timings": timings},
        }


def _values(
    ber: float,
    cost: Mapping[str, Any],
    result: Mapping[str, Any],
    plain_cost: Mapping[str, Any],
    plain: Mapping[str, Any],
) -> dict[str, Any]:
    cost, result, before = cost["result"], result["result"], plain["result"]["per_chip"]["pa"]
    accuracies = result["per_chip"]["pa"]
    gains = [one - other for one, other in zip(accuracies, before, strict=True)]
    return {
        "ca": result["ca"],
        "pa": mean(accuracies),
        "pa_sd": sample_sd(accuracies),
        "pa_ci95": t_interval(accuracies),
        "gain": mean(gains),
        "gain_ci95": t_interval(gains),
        "energy": memory_energy(ber, cost, plain_cost["result"]["accesses"]),
        "parameters": cost["parameters"] + cost["added_parameters"],
        "changed_bits": mean(result["per_chip"]["changed_bits"]),
        "per_chip": result["per_chip"],
    }


def _slowdown(cost: Mapping[str, Any]) -> float:
    """Return the time of an answer with the protection, relative to the plain model's, timed in alternation."""
    taken = cost["run"]["seconds_a_batch"]
    return float(median(one / other for one, other in zip(taken["protected"], taken["plain"], strict=True)))


def memory_energy(ber: float, cost: Mapping[str, Any], accesses: float) -> float | None:
    """Return the energy of weight accesses at the voltage of a rate, relative to the plain model at full voltage.

    The result is None if the default voltage curve does not reach the rate.

    Args:
        ber: The rate.
        cost: Costs of the protected model: its weight ``accesses``; ``added_accesses`` of everything before and around
            it (at full voltage); the share of its cells that are ``hardened`` (at full voltage); its ``overhead`` in
            cells; and the number of its ``passes`` per image.
        accesses: Weight accesses of the plain model.
    """
    low, share = default_curve().energy_at_rate(ber), cost["hardened"]
    if low is None:
        return None
    own = cost["passes"] * cost["accesses"] * (1 + cost["overhead"]) * (share + (1 - share) * low)
    return float((own + cost["added_accesses"]) / accesses)
