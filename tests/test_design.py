"""The house rules that a machine can check: imports run one way, and the public names are there."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest

import neuralfuse
from conftest import ROOT
from neuralfuse.evaluation import evaluation_text, t_interval

SOURCE = Path(neuralfuse.__file__).parent
# From the ground up; docs/design.md says what each is for.
ROOMS = [
    {"errors"},
    {"seeds", "files", "ranges", "config", "published", "plugins", "runs"},
    {"quant", "faults", "wire"},
    {"memory"},
    {"data", "nets"},
    {"energy"},
    {"fuse"},
    {"export", "scoring"},
    {"train"},
    {"evaluation"},
    {"blackbox", "pipeline", "serve", "standin"},
    {"methods", "steps"},
    {"compare", "plan", "reproduce"},
    {"report"},
    {"demo"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imports_of(path: Path) -> set[str]:
    """The rooms that a module imports, inside functions too; those for type checkers only do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuralfuse."):
            names.add(node.module.split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "neuralfuse":
            names |= {alias.name for alias in node.names}
    return names


def test_imports_run_one_way():
    seen = set()
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        for other in imports_of(path) - {room}:
            assert FLOOR[other] <= FLOOR[room], f"{path} imports {other}, which lies above it"
            assert other == room or FLOOR[other] < FLOOR[room] or {other, room} <= {"seeds", "files", "ranges"}
    assert seen == set(FLOOR)


def test_public_names_are_there():
    assert all(hasattr(neuralfuse, name) for name in neuralfuse.__all__)
    assert len(neuralfuse.__all__) <= 36


def test_the_design_page_names_every_room():
    page = (SOURCE.parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    for room in FLOOR:
        assert f"`{room}`" in page, room


def test_files_stay_readable():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 330, path


def load_render():
    spec = importlib.util.spec_from_file_location("render", SOURCE.parents[1] / "results" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_with_results_are_made_from_the_records():
    render, tables = load_render(), 0
    for path in render.PAGES:
        page = path.read_text(encoding="utf-8")
        assert render.render(page) == page
        made = sum(page.count(f"<!-- {mark} ") for mark in render.MARKS)
        assert made == page.count(render.END)
        tables += made
    assert tables >= 1


def test_the_readme_shows_the_demo_s_record():
    record = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))
    assert f"```\n{evaluation_text(record)}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_the_page_says_a_generator_s_own_faults_cost_is_in_the_records():
    faulty, reliable = sorted(load_render().records("gtsrb/generator"), key=lambda one: one["pa_nf"])
    pairs = zip(reliable["per_chip"], faulty["per_chip"], strict=True)
    losses = [one["pa_nf"] - other["pa_nf"] for one, other in pairs if one["seed"] == other["seed"]]
    low, high = t_interval(losses)
    cost = f"Its own faults cost {sum(losses) / 10:.1f} points of PA(NF)"
    said = f"{cost} (paired over ten chips, 95% interval {low:.1f} to {high:.1f};"
    assert len(losses) == 10 and said in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["ResNet18", "VGG11"])
@pytest.mark.parametrize("generator", ["ConvL", "UNetL"])
def test_what_the_page_says_of_training_above_the_rate_is_in_the_records(target, generator):
    """Modules trained for ResNet18 at 1.5% beside those trained at 1%, used at 1%, chip by chip."""

    def chips(table: str, **of) -> dict:
        record = json.loads((ROOT / "results" / "paper" / f"{table}-cpu-reference.json").read_text())
        (row,) = (row for row in record["rows"] if of.items() <= row["of"].items())
        return row["measured"]["per_chip"]

    here = {"ber": 0.01, "generator": generator}
    above = chips("table1", source="ResNet18", target=target, **here)
    at = chips("table16", source="ResNet18", target="VGG11", **here)
    if target == "ResNet18":
        at = chips("table12", base="ResNet18", **here)
    assert (above["seed"], above["pa"]) == (at["seed"], at["pa"])
    gains = [one - other for one, other in zip(above["pa_nf"], at["pa_nf"], strict=True)]
    low, high = t_interval(gains)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"| {target} | {generator} | {sum(gains) / len(gains):+.1f} [{low:+.1f}, {high:+.1f}] |" in page


def test_what_the_page_says_of_ten_times_the_steps_is_in_the_record():
    record = json.loads((ROOT / "results" / "paper" / "table13-ten-times-longer-reference.json").read_text())
    (row,) = (row["measured"] for row in record["rows"] if row["measured"] is not None)
    chips = row["per_chip"]
    lost, won = row["ca"] - sum(chips["pa"]) / len(chips["pa"]), sum(chips["pa_nf"]) - sum(chips["pa"])
    won /= len(chips["pa"])
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"wins back {won:.1f} of the {lost:.1f} points that are lost at 1%, on the {len(chips['pa'])} chips" in page
    assert f"6,000 steps behind UNetS, a small one, win back {won / lost:.0%}" in page


def test_what_the_page_says_of_two_surrogates_is_in_the_records():
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    for generator in ("ConvL", "UNetL"):
        of = {"target": "VGG11", "ber": 0.01, "generator": generator}
        chips = []
        for table, source in (("table21", "ResNet18+VGG19"), ("table1", "ResNet18")):
            record = json.loads((ROOT / "results" / "paper" / f"{table}-cpu-reference.json").read_text())
            wanted = {**of, "source": source}
            (row,) = (row for row in record["rows"] if wanted.items() <= row["of"].items())
            chips.append(row["measured"]["per_chip"])
        two, one = chips
        assert (two["seed"], two["pa"]) == (one["seed"], one["pa"])
        gains = [first - second for first, second in zip(two["pa_nf"], one["pa_nf"], strict=True)]
        low, high = t_interval(gains)
        assert f"{sum(gains) / len(gains):.1f} [{low:+.1f}, {high:+.1f}]" in page


def test_what_the_page_says_of_fewer_bits_is_in_the_records():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = {}
    for way in ("floor", "cpu"):
        record = json.loads((ROOT / "results" / "paper" / f"table22-{way}-reference.json").read_text())
        measured = [row for row in record["rows"] if row["measured"] is not None]
        rows |= {(way, row["of"]["bits"]): row["measured"] for row in measured}
    floor, nearest = (
        {bits: one["ca"] for (way, bits), one in rows.items() if way == name} for name in ("floor", "cpu")
    )
    assert f"has {floor[6]:.1f}% left\nof its {floor[8]:.1f}% at 6 bits" in page
    assert f"there is none here either: {nearest[4]:.1f}% at 4 bits and {nearest[3]:.1f}% at 3" in page
    assert min(nearest[bits] for bits in (4, 5, 6)) > nearest[8] - 2 > floor[6] + 50
    pa = {bits: one["pa"] for (way, bits), one in rows.items() if way == "cpu"}
    assert max(pa[bits] for bits in (4, 5, 6, 8)) - min(pa[bits] for bits in (4, 5, 6, 8)) < 4 and pa[3] < pa[8] - 10


def test_the_records_show_a_recovery_for_three_seeds():
    records = load_render().records("gtsrb")
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
