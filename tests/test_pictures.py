"""Pictures as data: what is drawn is what the records say, and every picture becomes a file and a part of a page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from helpers.places import ROOT
from neuralfuse.cli.main import run
from neuralfuse.files import read_json
from neuralfuse.report import evaluations_picture, plan_picture, table_picture
from neuralfuse.report.charts import rate_ticks
from neuralfuse.report.svg import SERIES
from neuralfuse.reproduce import TABLES, Job
from neuralfuse.steps.runner import Progress
from neuralfuse.steps.work import Work


def evaluation(ber: float, pa: float, pa_nf: float | None) -> dict:
    """A record over five chips, one point apart."""
    chips = [{"seed": seed, "pa": pa + seed, "pa_nf": None if pa_nf is None else pa_nf + seed / 2} for seed in range(5)]
    faults = {"kind": "stuck", "ber": ber, "stuck_at_1": 0.5}
    fuse = None if pa_nf is None else {"fault_model": {**faults, "ber": 0.02}}
    config = {"base": {"name": "net"}, "fuse": fuse, "faults": faults}
    return {"config": config, "ber": ber, "ber_kind": "stuck", "ca": 98.0, "ca_nf": 97.0, "per_chip": chips}


def figure(name: str) -> dict:
    """The record of a figure, its published values taken for measured ones."""
    rows = []
    for place, row in enumerate(TABLES[name].rows):
        values = {key: row.get(key, 80.0 + place) for key in ("pa", "ca_nf", "pa_nf")}
        if "energy_saving" in row:
            values["energy_saving"] = row["energy_saving"] - 3
        rows.append(
            {
                "of": {key: row[key] for key in ("base", "ber", "generator", "n") if key in row},
                "published": {"pa_nf": row["pa_nf"], "energy_saving": row["energy_saving"]} if "pa_nf" in row else None,
                "misprint": TABLES[name].misprint(row),
                "measured": {**values, "pa_nf_ci95": [values["pa_nf"] - 1, values["pa_nf"] + 2]},
            }
        )
    config = {"scale": "smoke", "faults": "reference"}
    return {"table": name, "title": TABLES[name].title, "config": config, "rows": rows}


def test_evaluations_at_several_rates_are_bands_over_their_chips():
    picture = evaluations_picture([evaluation(0.04, 50, 85), evaluation(0.01, 80, 90), evaluation(0.02, 70, 88)])
    (panel,) = picture.panels
    fused, plain = panel.series
    assert list(plain.x) == [0.01, 0.02, 0.04] and list(plain.y) == [82, 72, 52] and list(fused.y) == [91, 89, 86]
    assert list(plain.low) == pytest.approx([80.4, 70.4, 50.4]) and list(plain.high) == pytest.approx(
        [83.6, 73.6, 53.6]
    )
    assert [level.accuracy for level in panel.levels] == [97, 98]
    assert picture.marked == (0.02, "trained at")
    assert list(picture.ticks.values()) == ["1%", "2%", "4%"]
    assert "5 unseen chips" in picture.caption


def test_what_is_not_known_is_not_drawn():
    alone = evaluations_picture([evaluation(0.01, 80, None), evaluation(0.04, 50, None)])
    assert len(alone.panels[0].series) == len(alone.panels[0].levels) == 1 and alone.marked is None
    other = [evaluation(0.01, 80, 90), evaluation(0.04, 50, 85)]
    for record in other:
        record["config"]["fuse"]["fault_model"]["kind"] = "flip"
    assert evaluations_picture(other).marked is None, "it was trained against other faults"


def test_rates_that_lie_close_share_a_tick():
    assert list(rate_ticks([0.01, 0.001, 0.002, 0.05])) == [0.002, 0.01, 0.05]


def test_labels_at_the_ends_of_curves_do_not_overlap():
    page = evaluations_picture([evaluation(0.01, 90, 90), evaluation(0.04, 50, 53)]).svg()
    found = re.findall(r'<text[^>]*(?: y="|translate\([\d.]+ )([\d.]+)[^>]*>([^<]+)</text>', page)
    places = {text: float(y) for y, text in found}
    assert places["without"] - places["NeuralFuse"] > 9 and places["NeuralFuse"] - places["with"] > 9, "points apart"


def test_a_plan_has_its_choice_ringed_and_its_target_dotted():
    record = read_json(ROOT / "results" / "gtsrb" / "plan" / "plan.json")
    picture = plan_picture(record)
    choice = record["options"][record["choice"]]
    ring = picture.series[-1]
    assert (list(ring.x), list(ring.y), ring.hollow) == ([100 * (1 - choice["weights"])], [choice["mean"]], True)
    labels = [one.label for one in picture.series if one.label]
    assert labels == [
        "no protection", "NeuralFuse: unetl", "NeuralFuse: unets", "2 bits protected", "4 bits protected",
        "resnet8, no errors", "cheapest that reaches it",
    ]  # fmt: skip
    assert sum(len(one.x) for one in picture.series if one.label) == len(record["options"]) + 1
    worst = [accuracy for one in picture.series if one.mark == "_" for accuracy in one.y]
    assert sorted(worst) == sorted(one["worst"] for one in record["options"])
    assert [(level.accuracy, level.label) for level in picture.levels] == [(97, "target: a mean of 97%, 95% sure")]
    none = plan_picture({**record, "choice": None})
    assert len(none.series) == len(picture.series) - 1 and "Nothing measured" in none.alt


def test_a_figure_has_the_paper_s_values_hollow_and_misprints_starred():
    record = figure("figure6")
    picture = table_picture(record)
    hollow = [one for one in picture.series if one.hollow and one.x]
    printed = [(row["published"]["energy_saving"], row["published"]["pa_nf"]) for row in record["rows"]]
    assert [(one.x[0], one.y[0]) for one in hollow] == printed
    assert [bool(one.note) for one in hollow] == [bool(row["misprint"]) for row in record["rows"]]
    solid = [one for one in picture.series if one.x and not one.hollow]
    assert [(one.low[0], one.y[0], one.high[0]) for one in solid] == [
        (row["measured"]["pa_nf"] - 1, row["measured"]["pa_nf"], row["measured"]["pa_nf"] + 2) for row in record["rows"]
    ]
    assert {level.label for level in picture.levels} == {
        f"{row['of']['base']}, PA without" for row in record["rows"]
    }  # fmt: skip
    one_model = table_picture(figure("figure1b"))
    assert [level.label for level in one_model.levels] == ["PA without"]


def test_what_has_no_picture_has_none():
    record = figure("figure6")
    for row in record["rows"]:
        row["measured"] = None
    assert table_picture(record) is None
    assert table_picture(read_json(ROOT / "results" / "paper" / "table13-cpu-reference.json")) is None


@pytest.mark.parametrize("suffix", ["svg", *(pytest.param(one, marks=pytest.mark.slow) for one in ("png", "pdf"))])
def test_every_picture_becomes_a_file_and_a_part_of_a_page(tmp_path, suffix):
    large = figure("figure5")
    large["rows"][0]["measured"]["energy_saving"] = -4000.0  # a generator that is far larger than the base model
    pictures = [
        evaluations_picture([evaluation(0.01, 80, 90), evaluation(0.04, 50, 85)], title="costs $1 or $2"),
        plan_picture(read_json(ROOT / "results" / "gtsrb" / "plan" / "plan.json")),
        *(table_picture(figure(name)) for name in ("figure1b", "figure5", "figure6", "figure7")),
        table_picture(large),
    ]
    for place, picture in enumerate(pictures):
        path = tmp_path / f"{place}.{suffix}"
        picture.save(path)
        assert path.stat().st_size > 5_000
        if suffix == "svg":
            text = path.read_text(encoding="utf-8")
            assert "var(--" not in text and not any(role in text for role in SERIES), "a file has colours of its own"
            assert "unseen chips" in text or "95% interval" in text, "and its caption"
        page = picture.svg()
        assert picture.alt in page and "var(--series-1)" in page and picture.title not in page


def test_files_are_as_large_as_what_they_show(tmp_path):
    from PIL import Image

    path = tmp_path / "plan.png"
    plan_picture(read_json(ROOT / "results" / "gtsrb" / "plan" / "plan.json")).save(path)
    with Image.open(path) as made:
        pixels = np.asarray(made.convert("L"))
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in edges), "nothing is cut off"


def test_reproduce_draws_what_there_is_when_steps_fail(tmp_path, monkeypatch, capsys):
    def failing(work, on, **options):
        return Progress({step.address: step for step in work.steps}, failed={work.steps[0].address: "OSError: full"})

    record = figure("figure1b") | {"data": {}, "steps": {}}
    for row in record["rows"]:
        row["step"] = None
    record["rows"][0]["measured"] = None
    monkeypatch.setattr(Work, "run", failing)
    monkeypatch.setattr(Job, "records", lambda job: [record])
    assert run(["reproduce", "figure1b", "--scale", "smoke", "--workers", "0", "--out", str(tmp_path)]) == 1
    assert "1 of " in (err := capsys.readouterr().err) and "OSError: full" in err
    assert {path.name for path in tmp_path.iterdir()} == {
        "figure1b-smoke-reference.json", "figure1b-smoke-reference.png",
    }  # fmt: skip
