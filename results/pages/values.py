"""Values within the sentences of pages, each of a name that says what it is: ``GROUP: WHAT``.

A group is a comparison or one of `GROUPS`. Of a comparison's methods there are, at a rate where one matters:

    flips: unetl over reestimate at 1%      gain, paired by chip, with its 95% interval
    flips: accuracy of unetl at 1%          mean over chips; likewise spread, CA, loss (CA minus accuracy), energy
    longer: minutes of unets                how long its training took

Percent signs are not part of a value. A name must not hold two hyphens in a row, which some readers of Markdown refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from neuralfuse.compare.best import Difference
from neuralfuse.compare.show import difference
from neuralfuse.errors import unknown_name
from neuralfuse.evaluation import mean
from pages import commands
from pages.records import COMPARISONS, Comparison, PageError, Records, paired, per_chip

_GAIN = re.compile(r"(?P<method>\S+) over (?P<other>\S+) at (?P<rate>[\d.]+)%")
_QUANTITY = re.compile(r"(?P<what>\w+) of (?P<method>\S+)( at (?P<rate>[\d.]+)%)?")
_QUANTITIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "accuracy": lambda measured: f"{measured['pa']:.1f}",
    "spread": lambda measured: f"{measured['pa_sd']:.1f}",
    "CA": lambda measured: f"{measured['ca']:.1f}",
    "loss": lambda measured: f"{measured['ca'] - measured['pa']:.1f}",
    "energy": lambda measured: f"{100 * measured['energy']:.0f}",
}


def value(name: str, records: Records) -> str:
    """Return the value of a name.

    Raises:
        PageError: no record has it.
        UnknownNameError: there is no such group, or nothing of that name in it.
    """
    group, _, what = name.partition(": ")
    if group in COMPARISONS:
        return compared(records.comparison(group), what)
    if group not in GROUPS:
        raise unknown_name("group of values", group, [*COMPARISONS, *GROUPS])
    values = GROUPS[group](records)
    if what not in values:
        raise unknown_name(f"value of {group!r}", what, values)
    return values[what]


def compared(comparison: Comparison, what: str) -> str:
    """Return a value of a comparison."""
    if found := _GAIN.fullmatch(what):
        return difference(comparison.gain(found["method"], found["other"], float(found["rate"]) / 100))
    if not (found := _QUANTITY.fullmatch(what)):
        raise PageError(f"a value of a comparison must be 'A over B at 1%' or 'accuracy of A at 1%': got {what!r}.")
    if found["what"] == "minutes":
        return f"{comparison.training_minutes(found['method']):.0f}"
    if found["what"] not in _QUANTITIES:
        raise unknown_name("value of a method", found["what"], [*_QUANTITIES, "minutes"])
    row = comparison.row(found["method"], None if found["rate"] is None else float(found["rate"]) / 100)
    return _QUANTITIES[found["what"]](row["measured"])


# README.md and docs/results.md


def signs(records: Records) -> dict[str, str]:
    """German traffic signs: three trainings of NeuralFuse for one small VGG, on the same chips."""
    runs = records.folder("gtsrb")
    ca, pa, spread = (runs[0][name] for name in ("ca", "pa", "pa_sd"))
    shares = [run["rp"] / (ca - pa) for run in runs]
    return {
        "CA": f"{ca:.1f}",
        "CA, two digits": f"{ca:.2f}",
        "CA, no digits": f"{ca:.0f}",
        "PA": f"{pa:.1f}",
        "PA(NF)": f"{mean([run['pa_nf'] for run in runs]):.0f}",
        "points lost": f"{ca - pa:.0f}",
        "least share won back": f"{100 * min(shares):.0f}",
        "greatest share won back": f"{100 * max(shares):.0f}",
        "spread": f"{spread:.0f}",
        "spread behind NeuralFuse": f"{mean([run['pa_nf_sd'] for run in runs]):.0f}",
    }


def own_faults(records: Records) -> dict[str, str]:
    """What faults in its own memory cost a generator, on the traffic signs."""
    lost = cost_of_own_faults(records)
    low, high = lost.interval or (lost.points, lost.points)
    ca = records.folder("gtsrb/generator")[0]["ca"]
    return {"points": f"{lost.points:.1f}", "low": f"{low:.1f}", "high": f"{high:.1f}", "CA": f"{ca:.2f}"}


def cost_of_own_faults(records: Records) -> Difference:
    """Return PA(NF) of a generator in a reliable memory minus that of the same one in a faulty memory."""
    of = {"generator_memory" in record["config"]: per_chip(record) for record in records.folder("gtsrb/generator")}
    return paired(of[False], of[True])


def transfer(records: Records) -> dict[str, str]:
    """Modules that were trained for another model than the one they protect, at 1% on CIFAR-10."""
    points, shares, values = [], [], {}
    for generator in ("ConvL", "UNetL"):
        for train_ber in (0.015, 0.01):
            own, other = (
                trained_at(records, train_ber, generator, target)["measured"]["rp"] for target in ("ResNet18", "VGG11")
            )
            points.append(other)
            shares.append(100 * other / own)
        values[f"{generator} of two sources over one"] = difference(of_two_sources(records, generator))
        for target in ("ResNet18", "VGG11"):
            gain = difference(trained_above(records, generator, target))
            values[f"{generator} before {target}, trained at 1.5% over 1%"] = gain
    return {
        "fewest points": f"{min(points):.0f}",
        "most points": f"{max(points):.0f}",
        "least share": f"{min(shares):.0f}",
        "greatest share": f"{max(shares):.0f}",
        **values,
    }


def trained_at(records: Records, train_ber: float, generator: str, target: str) -> dict[str, Any]:
    """Return the row of a module trained for ResNet18 at 1% or 1.5%, before a target at 1%."""
    of = {"ber": 0.01, "generator": generator}
    if train_ber == 0.015:
        return records.paper("table1-cpu-reference", target=target, **of)
    if target == "ResNet18":
        return records.paper("table12-cpu-reference", base=target, **of)
    return records.paper("table16-cpu-reference", target=target, **of)


def trained_above(records: Records, generator: str, target: str) -> Difference:
    """Return the gain of training for ResNet18 at 1.5% over training at 1%, before a target at 1%."""
    above, at = (trained_at(records, train_ber, generator, target)["measured"] for train_ber in (0.015, 0.01))
    return paired(above["per_chip"], at["per_chip"])


def of_two_sources(records: Records, generator: str) -> Difference:
    """Return the gain of training for ResNet18 and VGG19 over training for ResNet18 alone, before VGG11 at 1%."""
    two = records.paper("table21-cpu-reference", target="VGG11", ber=0.01, generator=generator)
    one = trained_at(records, 0.015, generator, "VGG11")
    return paired(two["measured"]["per_chip"], one["measured"]["per_chip"])


def few_bits(records: Records) -> dict[str, str]:
    """ResNet18 in fewer bits, without bit errors and with them, and what the paper printed of it."""
    values = {"CA at 6, rounded down": f"{bits(records, 6, 'floor')['measured']['ca']:.1f}"}
    for count in (8, 4, 3):
        values[f"CA at {count}"] = f"{bits(records, count)['measured']['ca']:.1f}"
    for count in (4, 3):
        values[f"the paper's CA at {count}"] = f"{bits(records, count)['published']['ca']:.1f}"
    for count in (8, 5, 4):
        values[f"the paper's PA at {count}"] = f"{bits(records, count)['published']['pa']:.1f}"
    return values


def bits(records: Records, count: int, way: str = "cpu") -> dict[str, Any]:
    """Return the row of weights of so many bits, rounded to the nearest (``cpu``) or down (``floor``)."""
    return records.paper(f"table22-{way}-reference", bits=count, generator="ConvL")


def vgg11(records: Records) -> dict[str, str]:
    """VGG11 at a quarter of the width, beside the paper's: on CIFAR-10, and on the traffic signs."""
    photos = records.paper("table12-cpu-reference", base="VGG11", generator="ConvL")
    again = records.paper("table16-cpu-reference", target="VGG11", ber=0.01, generator="ConvL")
    signs = records.paper("table13-cpu-reference", base="VGG11", generator="ConvL")
    own, printed = photos["measured"], photos["published"]
    return {
        "PA": f"{own['pa']:.1f}",
        "PA, trained again": f"{again['measured']['pa']:.1f}",
        "the paper's PA": f"{printed['pa']:.1f}",
        "the paper's points won back": f"{printed['rp']:.1f}",
        "the paper's points lost": f"{printed['ca'] - printed['pa']:.1f}",
        "points lost, signs": f"{signs['measured']['ca'] - signs['measured']['pa']:.0f}",
        "the paper's points lost, signs": f"{signs['published']['ca'] - signs['published']['pa']:.0f}",
    }


def ten_times(records: Records) -> dict[str, str]:
    """UNetS trained for 6,000 steps instead of 600."""
    measured = records.paper("table13-ten-times-longer-reference")["measured"]
    chips = measured["per_chip"]
    lost, won = measured["ca"] - mean(chips["pa"]), mean(chips["pa_nf"]) - mean(chips["pa"])
    longer, shorter = records.comparison("longer"), records.comparison("map")
    rates = {"0.5%": 0.005, "1%": 0.01, "2%": 0.02}
    return {
        "points won back": f"{won:.1f}",
        "points lost": f"{lost:.1f}",
        "share won back": f"{100 * won / lost:.0f}",
        "chips": f"{len(chips['pa'])}",
        "spread": f"{measured['pa_std']:.0f}",
        "spread behind NeuralFuse": f"{measured['pa_nf_std']:.0f}",
        **{
            f"over 600 steps at {rate}": difference(Difference.of(longer.row("unets", ber), shorter.row("unets", ber)))
            for rate, ber in rates.items()
        },
    }


# docs/remote.md


def questions(records: Records) -> dict[str, str]:
    """What a module that was trained for another model gains by questions, on ten chips."""
    given, tuned = "given:folder=runs/resnet18-unets", records.comparison("tuned")
    return {
        "20,000": difference(tuned.gain(f"{given}+tune", given, 0.01)),
        "5,000": difference(tuned.gain(f"{given}+tune:queries=5000", given, 0.01)),
    }


# docs/energy.md and README.md


def energy(_: Records) -> dict[str, str]:
    """What ResNet18 saves at 1% faulty cells behind the smallest and the largest UNet."""
    values = {}
    for generator in ("unetl", "unets"):
        found = commands.energy("resnet18", generator)
        base, fuse, saving = found["base"], found["generator"], found["saving"]
        values[f"weights, {generator}"] = f"{saving['paper']:.1f}"
        values[f"weights, {generator}, no digits"] = f"{saving['paper']:.0f}"
        values[f"inference, {generator}"] = f"{abs(saving['inference']):.1f}"
        values[f"accesses of {generator} over ResNet18"] = f"{fuse['paper_accesses'] / base['paper_accesses']:.3f}"
    return values


def plan(records: Records) -> dict[str, str]:
    """The plan for the traffic signs at 97%: what was chosen, and what else there was."""
    record = records["gtsrb/plan/plan.json"]
    options, check = record["options"], record["check"]
    chosen, nominal = options[record["choice"]], {one["name"]: one for one in options if one["voltage"] == 1}
    plain, smaller = cheapest_unprotected(records), nominal["resnet8"]
    return {
        "CA": f"{nominal['no protection']['mean']:.1f}",
        "voltage": f"{chosen['voltage']:.3f}",
        "weights saved": f"{100 * (1 - chosen['weights']):.1f}",
        "inference saved": f"{100 * (1 - chosen['inference']):.1f}",
        "checked": f"{check['mean']:.2f}",
        "checked on chips": f"{check['chips']}",
        "checked on images": f"{check['images']:,}",
        "voltage without protection": f"{plain['voltage']:.3f}",
        "weights saved by ResNet8": f"{100 * (1 - smaller['weights']):.0f}",
        "inference lost by ResNet8": f"{100 * (smaller['inference'] - 1):.0f}",
        "words of UNetL over the base model": f"{nominal['unetl']['weights'] - 1:.2f}",
        "words of UNetS over the base model": f"{nominal['unets']['weights'] - 1:.2f}",
    }


def cheapest_unprotected(records: Records) -> dict[str, Any]:
    """Return the plan's cheapest option without any protection that reaches the target."""
    options = records["gtsrb/plan/plan.json"]["options"]
    plain = [one for one in options if one["name"] == "no protection" and one["meets_target"]]
    return dict(min(plain, key=lambda one: one["weights"]))


GROUPS: dict[str, Callable[[Records], dict[str, str]]] = {
    "signs": signs,
    "own faults": own_faults,
    "transfer": transfer,
    "bits": few_bits,
    "VGG11": vgg11,
    "6,000 steps": ten_times,
    "questions": questions,
    "energy": energy,
    "plan": plan,
}
