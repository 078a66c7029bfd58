"""The paper's tables and figures: the step that measures each row, and the values taken from the step's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from neuralfuse import published
from neuralfuse.energy import efficiency_ratio, energy_saving, mac_saving
from neuralfuse.errors import require, unknown_name
from neuralfuse.evaluation import t_interval
from neuralfuse.faults import FaultModel, default_curve, fault_model
from neuralfuse.nets import GENERATORS
from neuralfuse.published import Measurement
from neuralfuse.steps.measurements import EvaluationStep, LatencyStep
from neuralfuse.steps.scale import ImageSpec, Scale
from neuralfuse.steps.step import Step, counts, encodes
from neuralfuse.steps.trainings import BaseStep, ModuleStep, StartStep

Faults = Literal["reference", "stuck", "flip"]
AWP = "-AWP"  # suffix of base models that are trained with adversarial weight perturbation
GAMMA = 0.01
"""Size of that perturbation. Source: Wu et al. (NeurIPS 2020), for adversarial images. NeuralFuse prints none."""
FEWER_OR_MORE = (1, 2, 5, 10, 20)  # chips per step in Figure 7; the paper does not print its values


@dataclass(frozen=True)
class Request:
    """The options to reproduce a table with.

    Attributes:
        scale: The scale, which replaces the paper's networks and data.
        faults: The fault model of the rates. The paper uses ``reference``. ``stuck`` has independent faulty cells.
            ``flip`` inverts bits. The paper did not measure this, so no published values are shown then.
        seed: Seed of all trainings.
        device: Device on which latencies are measured. Nothing else depends on it.
    """

    scale: Scale
    faults: Faults = "reference"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.faults not in get_args(Faults):
            raise unknown_name("meaning of the rate (--faults)", self.faults, get_args(Faults))
        require(self.seed >= 0, f"seed must be at least 0: got seed={self.seed}.")

    @property
    def comparable(self) -> bool:
        """Whether the paper's values are comparable."""
        return self.faults != "flip"

    def base(self, data: str, name: str) -> BaseStep:
        """Return the training of one of the paper's base models."""
        recipe = self.scale.recipe(data)
        require(name in recipe.bases, f"scale {self.scale.name} must name a network for {name} under [bases].")
        qat = replace(recipe.qat, seed=self.seed, awp=GAMMA if name.endswith(AWP) else 0.0)
        return BaseStep(recipe.images, recipe.bases[name], qat)

    def rate(self, ber: float) -> float:
        """Return the rate at this scale for a rate of the paper."""
        return min(1.0, round(ber * self.scale.rate_factor, 12))

    def fault_model(self, ber: float) -> FaultModel:
        """Return the fault model for a rate of the paper."""
        return fault_model(self.faults, ber=self.rate(ber))

    def evaluation(self, of: Measurement, **eopm: Any) -> EvaluationStep:
        """Return the step that reproduces one of the paper's measurements. ``eopm`` changes fields of the recipe."""
        recipe, scale = self.scale.recipe(of.data), self.scale
        generator = of.generator.lower()
        encoding = encodes(generator, recipe.images)  # other generators are not taught the classes
        bases = tuple(self.base(of.data, name) for name in of.sources)
        trained = replace(
            recipe.eopm, lam=of.lam, seed=self.seed,
            adversarial_bits=_same_share(of, bases[0]), class_head=recipe.eopm.class_head * encoding, **eopm,
        )  # fmt: skip
        start = None
        if recipe.pretrain and encoding:
            start = StartStep(recipe.images, generator, replace(recipe.pretrain, seed=self.seed))
        return EvaluationStep(
            self.base(of.data, of.base),
            ModuleStep(bases, generator, self.fault_model(of.train_ber), trained, start),
            self.fault_model(of.ber), scale.chips, of.bits, scale.until, scale.test_images,
        )  # fmt: skip


def _same_share(of: Measurement, base: BaseStep) -> int:
    """Return the number of a model's bits that is the same share as the paper's K bits of the paper's model."""
    if not of.k_bits:
        return 0
    theirs = counts(of.base.lower(), ImageSpec("cifar10")).words
    return max(1, round(of.k_bits * counts(base.network, base.images).words / theirs))


_StepOf = Callable[[Request, Mapping[str, Any]], Step | None]
_ValuesOf = Callable[[Request, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """The definition of one table or figure.

    Attributes:
        title: Title of the table.
        rows: The rows: their keys, and their published values under the names in ``values``.
        values: Names of the measured values.
        step: Called with the request and a row; returns the step that measures the row, or None for none.
        measured: Called with the request, a row and the step's record; returns the row's measured values.
        printed_in: The paper's tables that the published values come from.
        timings: Names of those values that are times. Records keep them under ``run``.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    values: tuple[str, ...]
    step: _StepOf
    measured: _ValuesOf
    printed_in: tuple[str, ...] = ()
    timings: tuple[str, ...] = ()

    def misprint(self, row: Mapping[str, Any]) -> str | None:
        """Return the known misprints in a row's published values; None if there are none."""
        notes = [published.misprint(table, row) for table in self.printed_in]
        return "; ".join(note for note in notes if note) or None


ACCURACIES = ("ca", "pa", "pa_std", "ca_nf", "pa_nf", "pa_nf_std", "rp")


def _accuracies(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    result, alone = record["result"], record["result"]["alone"]
    chips, trained = result["per_chip"], result["config"]["fuse"]
    interval = t_interval([chip["pa_nf"] for chip in chips])
    shown = ("ber", "changed_bits", "chips", "ca_float", "ca", "ca_nf", "pa_nf", "rp", "rp_ci95")
    return {
        "network": result["config"]["base"]["name"],
        "bits": result["config"]["base"]["scheme"]["bits"],
        "train_ber": trained["ber"],
        **({"adversarial_bits": trained["adversarial_bits"]} if trained["adversarial_bits"] else {}),
        **{name: result[name] for name in shown},
        "pa": alone["pa"],  # on all chips of the scale, even if this module was measured on fewer
        "pa_std": alone["pa_sd"],
        "pa_nf_std": result["pa_nf_sd"],
        "pa_nf_ci95": None if interval is None else list(interval),
        "per_chip": {name: [chip[name] for chip in chips] for name in ("seed", "pa", "pa_nf", "changed_bits")},
    }


def _printed(
    name: str, values: tuple[str, ...], step: _StepOf, measured: _ValuesOf, timings: tuple[str, ...] = ()
) -> Table:
    """Return the definition of a table that the paper prints."""
    return Table(_title(name), published.rows(name), values, step, measured, (name,), timings)


def _of_accuracies(name: str) -> Table:
    def step(request: Request, row: Mapping[str, Any]) -> Step:
        return request.evaluation(published.measurement(name, row))

    return _printed(name, ACCURACIES, step, _accuracies)


def _title(name: str) -> str:
    return str(published.paper()["tables"][name]["title"])


def _counts_at(request: Request, name: str, data: str = "CIFAR-10") -> tuple[str, Any]:
    """Return the name of a network or generator at this scale, and its operation counts."""
    recipe = request.scale.recipe(data)
    exists = name.lower() in GENERATORS or name in recipe.bases
    require(exists, f"scale {request.scale.name} must name a network for {name} under [bases].")
    own = name.lower() if name.lower() in GENERATORS else recipe.bases[name]
    return own, counts(own, recipe.images)


def _saving(request: Request, row: Mapping[str, Any], by: str, data: str = "CIFAR-10") -> float:
    (_, base), (_, added) = (_counts_at(request, row[name], data) for name in ("base", "generator"))
    weight_energy = default_curve().energy(default_curve().voltage(row["ber"]))
    if by == "accesses":
        return energy_saving(weight_energy, added.paper_accesses, base.paper_accesses)
    return mac_saving(weight_energy, added.paper_macs or 0, base.paper_macs or 0)


def _nothing(request: Request, row: Mapping[str, Any]) -> None:
    return None


def _table2(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    return {"network": _counts_at(request, row["base"])[0], "energy_saving": _saving(request, row, "accesses")}


def _table3_step(request: Request, row: Mapping[str, Any]) -> Step:
    where = {name: row[name] for name in ("base", "ber", "generator")}
    return request.evaluation(published.measurement("table12", published.rows("table12", **where)[0]))


def _table3(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    made = _accuracies(request, row, record)
    parameters = _counts_at(request, row["generator"])[1].parameters
    return {**made, "parameters": parameters, "efficiency_ratio": efficiency_ratio(made["rp"], parameters)}


def _table6(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    network, found = _counts_at(request, row["model"])
    return {"network": network, "twma": found.paper_accesses}


def _table7(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    network, found = _counts_at(request, row["model"], row["dataset"])
    return {"network": network, "params": found.parameters, "macs": found.paper_macs, "plain_macs": found.macs}


def _table8(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    return {"network": _counts_at(request, row["base"])[0], "mac_energy_saving": _saving(request, row, "macs")}


def _table9_step(request: Request, row: Mapping[str, Any]) -> Step:
    base, generator = request.base(row["dataset"], row["base"]), row["generator"]
    return LatencyStep(base.images, base.network, None if generator is None else generator.lower(), request.device)


def _table9(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    taken, network = record["run"]["latency_seconds"], record["config"]["network"]
    if row["generator"] is None:
        return {"network": network, "latency_ms": 1000 * taken["base"], "added_ms": None}
    both = taken["with_neuralfuse"]
    return {"network": network, "latency_ms": 1000 * both, "added_ms": 1000 * (both - taken["base"])}


def _trade_off(table: str, title: str, **where: Any) -> Table:
    """Return the definition of a figure of accuracy against saved energy, from a table's rows at 1%."""

    def measured(request: Request, row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
        saved = _saving(request, row, "accesses", published.measurement(table, row).data)
        return {**_accuracies(request, row, record), "energy_saving": saved}

    def step(request: Request, row: Mapping[str, Any]) -> Step:
        return request.evaluation(published.measurement(table, row))

    saved = {(row["base"], row["generator"]): row["energy_saving"] for row in published.rows("table2")}
    rows = [
        {**row, "energy_saving": saved[row["base"], row["generator"]]}
        for row in published.rows(table, ber=0.01, **where)
    ]
    return Table(title, rows, (*ACCURACIES, "energy_saving"), step, measured, ("table2", table))


def _figure7_step(request: Request, row: Mapping[str, Any]) -> Step:
    of = Measurement(
        data="CIFAR-10", base=row["base"], sources=(row["base"],), generator=row["generator"],
        train_ber=row["ber"], ber=row["ber"],
    )  # fmt: skip
    return request.evaluation(of, n_chips=row["n"])


_LATENCIES = ("latency_ms", "added_ms")
_TRADE_OFF = "Accuracy at 1% bit errors against the weights' energy saved"
_N = "Perturbed models per training step, N: ConvL for ResNet18 on CIFAR-10 at 1% bit errors"
_FIGURE7 = [{"base": "ResNet18", "ber": 0.01, "generator": "ConvL", "n": n} for n in FEWER_OR_MORE]

TABLES: dict[str, Table] = {
    "table1": _of_accuracies("table1"),
    "table2": _printed("table2", ("energy_saving",), _nothing, _table2),
    "table3": _printed("table3", ("efficiency_ratio",), _table3_step, _table3),
    "table6": _printed("table6", ("twma",), _nothing, _table6),
    "table7": _printed("table7", ("params", "macs", "macs_printed"), _nothing, _table7),
    "table8": _printed("table8", ("mac_energy_saving",), _nothing, _table8),
    "table9": _printed("table9", _LATENCIES, _table9_step, _table9, timings=_LATENCIES),
    **{f"table{number}": _of_accuracies(f"table{number}") for number in range(10, 27)},
    "figure1b": _trade_off("table12", f"{_TRADE_OFF}, ResNet18 on CIFAR-10", base="ResNet18"),
    "figure5": _trade_off("table12", f"{_TRADE_OFF}, all base models on CIFAR-10"),
    "figure6": _trade_off("table13", f"{_TRADE_OFF}, all base models on GTSRB"),
    "figure7": Table(_N, _FIGURE7, ACCURACIES, _figure7_step, _accuracies),
}  # fmt: skip


def choose(
    names: Sequence[str], where: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of the named tables that have the wanted values, by table.

    Args:
        names: Keys of `TABLES`, or ``all`` for all tables.
        where: Wanted values by column, as text. A row must have one of a column's values.
    Raises:
        UnknownNameError: there is no such table, column or value. The message lists the legal ones.
    """
    chosen = {}
    for name in (own for one in names for own in (TABLES if one == "all" else [one])):
        if name not in TABLES:
            raise unknown_name("table", name, ["all", *TABLES])
        chosen[name] = list(TABLES[name].rows)
    for column, wanted in (where or {}).items():
        columns = {key for name in chosen for key in keys(name)}
        if column not in columns | ({"base"} if "target" in columns else set()):
            raise unknown_name("column of the rows", column, sorted(columns))
        legal = {_value(row, column) for rows in chosen.values() for row in rows} - {None}
        for value in wanted:
            if value not in legal:
                raise unknown_name(f"value of {column}", value, sorted(map(str, legal)))
        chosen = {
            name: [row for row in rows if _value(row, column) in (None, *wanted)] for name, rows in chosen.items()
        }
    return {name: rows for name, rows in chosen.items() if rows}


def keys(name: str) -> list[str]:
    """Return the key columns of a table's rows."""
    return [key for key in TABLES[name].rows[0] if key not in TABLES[name].values]


def _value(row: Mapping[str, Any], column: str) -> str | None:
    """Return a row's value of a column as text; None if it has none. The base of a transfer is its target."""
    value = row.get(column, row.get("target") if column == "base" else None)
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
