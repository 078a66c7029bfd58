"""Pages: their figures are made from records and commands, and what their sentences claim holds in the records.

Claims are about numbers only. No test knows the words of a page.
"""

from __future__ import annotations

import json
import re
import shutil

import pytest

from helpers.places import ROOT
from neuralfuse.errors import NeuralFuseError
from pages import values
from pages.records import PageError, Records
from render import END, PAGES, render

RECORDS = Records()


def test_pages_with_results_are_made_from_the_records():
    marks = 0
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        assert render(page, RECORDS) == page, f"{path} is not as `python results/render.py` writes it"
        marks += page.count("<!--/-->")
    assert marks > 100


def test_a_page_follows_its_record(tmp_path):
    shutil.copytree(ROOT / "results" / "gtsrb", tmp_path / "gtsrb")
    page = f"CA <!--signs: CA-->?<!--/-->%\n<!-- evaluations gtsrb -->\n{END}\n"
    before = render(page, Records(tmp_path))
    assert "CA <!--signs: CA-->97.4<!--/-->%\n" in before and before.count("| 97.37 |") == 3
    assert render(before, Records(tmp_path)) == before
    path = tmp_path / "gtsrb" / "unetl-0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ca": 12.5}))
    after = render(before, Records(tmp_path))
    assert "CA <!--signs: CA-->12.5<!--/-->%\n" in after and after.count("| 97.37 |") == 2


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("x <!--sign: CA--><!--/-->", "unknown group of values 'sign'. Did you mean 'signs'?"),
        ("x <!--signs: PAs--><!--/-->", "unknown value of 'signs' 'PAs'. Did you mean 'PA'?"),
        ("x <!--flips: unetl--><!--/-->", "must be 'A over B at 1%' or 'accuracy of A at 1%': got 'unetl'"),
        ("x <!--flips: acuracy of unetl at 1%--><!--/-->", "unknown value of a method 'acuracy'"),
        ("x <!--flips: accuracy of unetx at 1%--><!--/-->", "'flips' must have measured unetx at 1%: got no such row"),
        ("x <!--flips: unetl over none at 3%--><!--/-->", "'flips' must have measured unetl at 3%"),
        ("x <!--signs: CA-->97.4", "a value must stand within one line"),
        ("<!--signs: CA-->97.4<!--/-->%", "a line must not begin with a value"),
        ("- <!--signs: CA-->97.4<!--/-->%", "a line must not begin with a value"),
        ("<!-- demos demo.json -->", "unknown kind of block 'demos'. Did you mean 'demo'?"),
        ("<!-- demo none.json -->", "there must be a record results/none.json: got no such file"),
        ("<!-- demo demo.json -->", "every block must end with"),
        ("<!-- demo demo.json -->\n<!-- demo demo.json -->", "before the next"),
        (END, "must end a block: there is none above it"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_refused(page, message):
    with pytest.raises((PageError, NeuralFuseError)) as caught:
        render(page, RECORDS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# What docs/comparison.md, docs/one-chip.md and docs/remote.md say of methods: on the same chips each one on the left is
# ahead of each one on the right (>), or no difference shows (~), by 95% intervals.

ALIKE = ("batch-statistics", "reestimate", "clip-quantization", "protected-bits", "zero-faulty-words")
METHODS = {
    "GENERATORS": "convl convs deconvl deconvs unetl unets",
    "ALIKE": " ".join(ALIKE),
    "RETRAINED": "weight-clipping randbet smaller",
}
METHODS["ALONE"] = f"none uip clip-activations awp {' '.join(METHODS.values())}"
METHODS["TOGETHER"] = " ".join(f"unets+{name}" for name in (*ALIKE, "clip-activations"))
METHODS["TOGETHER"] += " weight-clipping+unets randbet+unets awp+unets"
FITTED, GIVEN = "unets+calibrate", "given:folder=runs/resnet18-unets"
CLAIMS = [
    "longer: unets > ALIKE RETRAINED at 0.5%",
    "longer: unets > ALIKE at 1%",
    "longer: unets ~ randbet weight-clipping at 1%",
    "longer: smaller > unets at 1%",
    "longer: randbet weight-clipping smaller batch-statistics reestimate protected-bits > unets at 2%",
    "longer: unets+batch-statistics > unets batch-statistics randbet at 0.5% 1% 2%",
    "longer: unets+reestimate > unets reestimate randbet at 0.5% 1% 2%",
    "longer: unets+protected-bits > unets protected-bits randbet smaller at 0.5% 1% 2%",
    "longer: unets+batch-statistics unets+reestimate > smaller at 0.5% 1%",
    "longer: smaller > unets+reestimate at 2%",
    "map; flips: unetl > GENERATORS at 0.5% 1% 2%",
    "map: convs > uip at 0.5% 1% 2%",
    "map: uip > none at 0.5% 1% 2%",
    "map: unetl > reestimate at 0.5%",
    "map: reestimate > GENERATORS at 1% 2%",
    "map: randbet > weight-clipping at 0.5% 1% 2%",
    "map: randbet > ALONE but RETRAINED unetl at 0.5%",
    "map: randbet > ALONE but RETRAINED at 1% 2%",
    "map: none > awp at 0.5%",
    "map: none ~ awp at 1% 2%",
    *(f"map; flips: unets+{other} > unets {other} at 0.5% 1% 2%" for other in ALIKE),
    "map; flips: weight-clipping+unets > weight-clipping at 0.5% 1% 2%",
    "map; flips: unets+protected-bits > randbet at 0.5% 1% 2%",
    "map: randbet+unets > randbet at 0.5% 1% 2%",
    "map: awp+unets ~ unets at 0.5% 1% 2%",
    "map: unets+reestimate > randbet at 0.5% 1%",
    "map: smaller > ALONE TOGETHER but unets+reestimate unets+protected-bits weight-clipping+unets at 0.5%",
    "map: smaller ~ unets+reestimate unets+protected-bits weight-clipping+unets at 0.5%",
    "map: smaller > ALONE TOGETHER at 1% 2%",
    "another base: unetl ~ reestimate at 0.5%",
    "another base: reestimate > unetl at 1%",
    "another base: randbet ~ weight-clipping at 1%",
    "another base: convs ~ uip at 1%",
    "flips: unetl > batch-statistics reestimate clip-quantization clip-activations at 0.5% 1%",
    "flips: unetl ~ protected-bits at 1%",
    "flips: reestimate protected-bits > unetl at 2%",
    "flips: unets > reestimate at 1%",
    "flips: randbet+unets ~ randbet at 0.5% 1%",
    "flips: randbet+unets > randbet at 2%",
    "flips: none > awp at 0.5% 1% 2%",
    "flips: awp+unets ~ unets at 1%",
    "flips: randbet ~ weight-clipping at 0.5%",
    "flips: randbet > weight-clipping at 1% 2%",
    "flips: unetl > randbet at 0.5%",
    "flips: randbet > unetl at 1%",
    "flips: smaller ~ unets+protected-bits at 0.5%",
    "flips: smaller > ALONE TOGETHER but unets+protected-bits at 0.5%",
    "flips: smaller > ALONE TOGETHER at 1% 2%",
    f"signs, stuck; signs, map; photos, stuck; photos, map: {FITTED} > unets at 1%",
    "signs, stuck; signs, map; photos, stuck; photos, map: unets+tune ~ unets at 1%",
    f"signs, stuck; signs, map: {FITTED}:images=100 ~ unets at 1%",
    f"photos, stuck; photos, map: {FITTED}:images=100 > unets at 1%",
    f"signs, stuck; signs, map; photos, stuck: unets > {FITTED}:images=10 at 1%",
    f"photos, map: unets ~ {FITTED}:images=10 at 1%",
    f"signs, stuck: {FITTED} > reestimate at 1%",
    f"signs, map; photos, stuck: {FITTED} ~ reestimate at 1%",
    f"photos, map: reestimate > {FITTED} at 1%",
    f"tuned: {GIVEN}+tune > {GIVEN} at 1%",
    f"tuned: {GIVEN}+tune:queries=5000 ~ {GIVEN} at 1%",
]
CLAIM = re.compile(r"(?P<of>.+?): (?P<left>.+) (?P<sign>[>~]) (?P<right>.+?)( but (?P<but>.+))? at (?P<rates>[\d.% ]+)")


def methods(names: str | None) -> list[str]:
    return [name for word in (names or "").split() for name in METHODS.get(word, word).split()]


@pytest.mark.parametrize("claim", CLAIMS)
def test_methods_are_ahead_as_pages_say(claim):
    said = CLAIM.fullmatch(claim)
    left, right, left_out = (methods(said[side]) for side in ("left", "right", "but"))
    pairs = [(one, other) for one in left for other in right if other not in (one, *left_out)]
    assert pairs
    for name in said["of"].split("; "):
        for rate in said["rates"].split():
            for one, other in pairs:
                low, high = RECORDS.comparison(name).gain(one, other, float(rate.rstrip("%")) / 100).interval
                assert low > 0 if said["sign"] == ">" else low < 0 < high, f"{one} over {other} in {name} at {rate}"


def test_comparisons_are_of_one_model_on_the_same_chips():
    """But for another base: the same base model, and for one meaning of the rate the same chips."""
    plain = {}
    for name in ("map", "flips", "longer"):
        comparison = RECORDS.comparison(name)
        assert comparison.record["config"]["chips"] == 30 and comparison.record["config"]["train_rate"] == 0.01
        assert {row["ber"] for row in comparison.rows()} == {0.005, 0.01, 0.02}
        plain[name] = [row["measured"] for row in comparison.rows() if row["method"] == "none"]
        if name != "longer":
            assert {row["method"] for row in comparison.rows()} == {*methods("ALONE TOGETHER")}
    assert len({measured["ca"] for of in plain.values() for measured in of}) == 1
    assert [one["per_chip"] for one in plain["map"]] == [one["per_chip"] for one in plain["longer"]]


def test_one_chip_is_asked_of_ten():
    assert len(methods("ALONE")) == 18 and len(methods("TOGETHER")) == 9
    for name in ("signs, stuck", "signs, map", "photos, stuck", "photos, map"):
        comparison = RECORDS.comparison(name)
        assert comparison.record["config"]["chips"] == 10
        assert comparison.gain(f"{FITTED}:images=10000", FITTED, 0.01).points < 0.6


def test_convl_is_the_next_best_generator():
    accuracy = {name: RECORDS.comparison("map").row(name, 0.01)["measured"]["pa"] for name in methods("GENERATORS")}
    assert sorted(accuracy, key=accuracy.get)[-2:] == ["convl", "unetl"]


def test_clipped_activations_change_nothing():
    for name, one, other, most in (
        ("flips", "clip-activations", "none", 0.05),
        ("flips", "unets+clip-activations", "unets", 0.05),
        ("map", "unets+clip-activations", "unets", 0.15),
    ):
        for ber in (0.005, 0.01, 0.02):
            assert max(map(abs, RECORDS.comparison(name).gain(one, other, ber).interval)) < most


def test_what_comparisons_cost():
    rows = {(row["method"], row["ber"]): row["measured"] for row in RECORDS.comparison("map").rows()}
    for ber in (0.005, 0.01, 0.02):
        assert rows["smaller", ber]["energy"] < rows["none", ber]["energy"] < 1
        assert all(rows[name, ber]["energy"] > 1 for name in methods("GENERATORS"))
    longer = {(row["method"], row["ber"]): row["measured"]["energy"] for row in RECORDS.comparison("longer").rows()}
    behind = {key: energy for key, energy in longer.items() if "unets" in key[0]}
    assert min(behind, key=behind.get) == ("unets", 0.02)
    assert max(behind, key=behind.get) == ("unets+protected-bits", 0.005)


def test_unets_with_another_method_is_above_the_plain_model_without_errors():
    comparison = RECORDS.comparison("longer")
    for row in comparison.rows():
        if row["method"].startswith("unets+"):
            above = row["measured"]["pa"] > comparison.row("none")["measured"]["ca"]
            assert above == (row["ber"] < 0.02 or row["method"] == "unets+protected-bits")


def test_two_percent_of_cells_change_as_many_bits_as_one_percent_of_flips():
    plain = {name: RECORDS.comparison(name).row("none", 0.02)["measured"] for name in ("longer", "stuck")}
    plain["flips"] = RECORDS.comparison("flips").row("none", 0.01)["measured"]
    assert all(one["changed_bits"] == pytest.approx(0.01, rel=0.02) for one in plain.values())
    assert len({one["ca"] for one in plain.values()}) == 1


# What docs/results.md and docs/energy.md say.


def test_three_trainings_win_back_what_bit_errors_cost():
    records = RECORDS.folder("gtsrb")
    assert {record["config"]["fuse"]["seed"] for record in records} == {0, 1, 2}
    for record in records:
        lost = record["ca"] - record["pa"]
        assert record["ber_kind"] == "stuck"
        assert record["ca"] >= 90
        assert 20 <= lost <= 50
        assert record["rp"] >= 0.4 * lost
        assert record["ca"] - record["ca_nf"] <= 4
        assert record["chips"] == len(record["per_chip"]) >= 30
        assert all(chip["seed"] > 50_009 for chip in record["per_chip"])


def test_a_generator_s_own_faults_do_harm():
    assert all(len(record["per_chip"]) == 10 for record in RECORDS.folder("gtsrb/generator"))
    assert values.cost_of_own_faults(RECORDS).interval[0] > 0


def test_what_transfers():
    """Two sources beat one; training above the rate helps but UNetL before a model that it never saw."""
    assert all(values.of_two_sources(RECORDS, generator).interval[0] > 0 for generator in ("ConvL", "UNetL"))
    for generator, target in (("ConvL", "ResNet18"), ("UNetL", "ResNet18"), ("ConvL", "VGG11")):
        assert values.trained_above(RECORDS, generator, target).interval[0] > 0
    assert values.trained_above(RECORDS, "UNetL", "VGG11").interval[1] < 0


def test_few_bits_do_no_harm_where_they_are_rounded_to_the_nearest():
    nearest = {count: values.bits(RECORDS, count)["measured"] for count in (8, 6, 5, 4, 3)}
    floor = {count: values.bits(RECORDS, count, "floor")["measured"] for count in (8, 6)}
    assert floor[8]["ca"] == nearest[8]["ca"]
    assert min(nearest[count]["ca"] for count in (6, 5, 4)) > nearest[8]["ca"] - 2 > floor[6]["ca"] + 50
    pa = [nearest[count]["pa"] for count in (8, 6, 5, 4)]
    assert max(pa) - min(pa) < 4 and nearest[3]["pa"] < pa[0] - 10


def test_without_protection_the_plan_saves_as_much_to_the_third_digit():
    record = RECORDS["gtsrb/plan/plan.json"]
    chosen, plain = record["options"][record["choice"]], values.cheapest_unprotected(RECORDS)
    assert chosen["name"] == "2 bits protected"
    assert 0 < plain["weights"] - chosen["weights"] < 0.0005


def test_linked_pages_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page}: {link}"
