"""The report: every record on one page, its numbers the records', and drawn by a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.comparisons import QUICK
from helpers.places import ROOT
from helpers.plans import plan_with
from helpers.toy import toy_data
from neuralfuse.blackbox import Function, LimitedBox, choose, judge, tune
from neuralfuse.cli.main import run
from neuralfuse.config import EopmConfig, TuningConfig
from neuralfuse.errors import NeuralFuseError
from neuralfuse.faults import Chip, fault_model
from neuralfuse.files import read_json, write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets import DeployedBase, load_base
from neuralfuse.pipeline import make_evaluation, make_fuse
from neuralfuse.report import Report, make_portrait
from neuralfuse.report.axes import names_with_room, stretch
from neuralfuse.report.compared import energy_chart, front_rows
from neuralfuse.report.page import Cell, Table
from neuralfuse.report.records import Found, collect
from neuralfuse.report.svg import SERIES, chart, inline
from neuralfuse.reproduce import TABLES
from neuralfuse.runs import given_command
from neuralfuse.scoring import accuracy, plain_inputs, transform
from neuralfuse.steps import Workspace, engine

CPU = torch.device("cpu")
STUCK = fault_model("stuck", ber=0.04)
TWO_RATES = replace(QUICK, rates=[0.01, 0.02])


@pytest.fixture(scope="module")
def fused(toy_base, tmp_path_factory):
    """A small base model and a NeuralFuse for it."""
    folder, data, base = tmp_path_factory.mktemp("fused"), toy_data(), DeployedBase.of(load_base(toy_base))
    eopm = EopmConfig(epochs=1, batch=16, n_chips=2)
    make_fuse("convs", [base], data, eopm, faults=STUCK, out=folder / "fuse", device=CPU)
    return NeuralFuse.from_pretrained(folder / "fuse"), base, data


@pytest.fixture(scope="module")
def records(fused, tmp_path_factory):
    """A folder with a record of every kind that is quick to make, and a paper's table that nothing was measured for."""
    folder = tmp_path_factory.mktemp("records")
    fuse, base, data = fused
    make_evaluation(fuse, base, data, fault_model("stuck", ber=0.02), chips=3, out=folder / "at-0.02.json")
    with given_command(["evaluate", "fuse", "--ber", "0.04"]):
        make_evaluation(fuse, base, data, fault_model("stuck", ber=0.04), chips=3, out=folder / "at-0.04.json")
    write_json(folder / "portrait.json", make_portrait(fuse, base, data, STUCK, chips=2, images=20))
    workspace = Workspace(tmp_path_factory.mktemp("steps"))
    with engine(workers=0, threads=1, scheduler=None) as on:
        TWO_RATES.work(workspace).run(on, retries=0, say=lambda line: None)
    write_json(folder / "below" / "comparison.json", TWO_RATES.record(workspace))
    write_json(folder / "table1.json", transfers())
    write_json(folder / "figure6.json", savings())
    plan_with(folder / "plan", NeuralFuse("uip", channels=1, image_size=(8, 8), seed=0).eval())
    for name, record in answered(fuse, base, data).items():
        write_json(folder / f"{name}.json", record)
    (folder / "notes.json").write_text('{"schema": "other/thing/1"}')
    (folder / "broken.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def seen(records) -> Report:
    """The report on them."""
    return Report.of(records, "Seen")


@pytest.fixture(scope="module")
def page(seen) -> str:
    return seen.html()


def transfers() -> dict:
    """A record of Table 1, its published values taken for measured ones."""
    rows = [
        {
            "of": {key: row[key] for key in ("source", "target", "ber", "generator") if key in row},
            "published": {"rp": row["rp"], "pa_nf": row["pa_nf"]},
            "misprint": None,
            "measured": {"rp": row["rp"] + 5, "rp_ci95": None, "pa_nf": row["pa_nf"] - 12, "chips": 2},
            "step": None,
        }
        for row in TABLES["table1"].rows
    ]
    return table_of("table1", "Transfer", rows)


def table_of(name: str, title: str, rows: list[dict]) -> dict:
    config = {"scale": "smoke", "scale_title": "small", "faults": "reference", "rate_factor": 1.0, "seed": 0}
    made = {"schema": "neuralfuse/table/1", "table": name, "title": title, "config": config}
    return {**made, "data": {}, "rows": rows, "steps": {}}


def savings() -> dict:
    """A record of Figure 6 of which VGG11 is measured, its published values taken for that."""
    rows = [
        {
            "of": {key: row[key] for key in ("base", "ber", "generator")},
            "published": {"pa_nf": row["pa_nf"], "energy_saving": row["energy_saving"]},
            "misprint": None,
            "measured": {
                "pa": row["pa"],
                "pa_nf": row["pa_nf"],
                "pa_nf_ci95": None,
                "chips": 2,
                "energy_saving": row["energy_saving"] - 3,
            }
            if row["base"] == "VGG11"
            else None,
            "step": None,
        }
        for row in TABLES["figure6"].rows
    ]
    return table_of("figure6", "Accuracy against energy saved", rows)


def answered(fuse, base, data) -> dict[str, dict]:
    """Records of a model that only answers: judged, chosen for, fitted to."""
    faulty = base.deployed.perturbed(Chip(STUCK, 7))

    def answer(x):
        return faulty(torch.from_numpy(x)).detach().numpy()

    def box():
        return LimitedBox(Function(answer, "call:faulty:answer"), classes=2)

    few = TuningConfig(queries=120, step_images=10, directions=1, judged=20)
    return {
        "judged": judge(fuse, box(), data, images=20),
        "choice": choose({"runs/a": fuse}, box(), data, images=20),
        "tuning": tune(fuse, box(), data, few)[1],
    }


def test_the_page_needs_nothing_else(page):
    links = re.findall(r'(?:src|href|action)="([^"]+)"', page) + re.findall(r"url\(([^)]+)\)", page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in page and "@import" not in page
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", page))
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', page)) == page.count("<svg")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(f'id="{anchor}"' in page for anchor in re.findall(r'href="#([^"]+)"', page))


def test_every_record_is_shown_with_its_command_and_numbers(records, seen, page):
    kinds = [section.found.kind for section in seen.sections]
    assert kinds == [
        "table", "table", "comparison", *["evaluation"] * 3, "portrait", "plan", "black-box", "choice", "tuning",
    ]  # fmt: skip
    assert [str(path) for path in seen.damaged] == ["broken.json"]
    for section in seen.sections:
        assert section.found.command.replace('"', "&#34;") in page
    assert "because they are not complete JSON: broken.json" in page
    for name, text in (("judged", "rp"), ("choice", "gain"), ("tuning", "gain")):
        assert f"{read_json(records / f'{name}.json')[text]:+.1f}" in page.replace("  ", "")
    assert "=> the cheapest that reaches the target" in page.replace("&gt;", ">")
    comparison = read_json(records / "below" / "comparison.json")
    for row in comparison["rows"]:
        assert f"{row['measured']['pa']:.1f}±{row['measured']['pa_sd']:.1f}" in page
    assert f"{read_json(records / 'at-0.04.json')['pa_nf']:6.2f}%" in page
    titles = {figure.title for section in seen.sections for figure in section.figures}
    assert {
        "All methods, flip",
        "Accuracy against the rate, flip",
        "Accuracy against energy, flip",
        "Recovery by class",
    } <= titles
    assert any(title.startswith("Transfer, ") for title in titles)
    assert "Accuracy against energy saved" in titles
    commands = {section.found.path.name: section.found.command for section in seen.sections}
    assert commands["at-0.04.json"] == "neuralfuse evaluate fuse --ber 0.04" and commands["at-0.02.json"] == ""
    assert [figure.title for figure in seen.across] == ["resnet8 against the rate"]


def compared(*rows: dict) -> Found:
    """A comparison with these rows, methods prepared for 1%."""
    config = {"train_rate": 0.01, "chips": 3}
    return Found(Path("comparison.json"), "comparison", {"config": config, "rows": list(rows)})


def compared_row(method: str, energy: float, pa: float, *generators: str, ber: float = 0.01) -> dict:
    stages = [{"method": "neuralfuse", "generator": one} for one in generators]
    measured = {"energy": energy, "pa": pa, "per_chip": {"pa": [pa, pa]}}
    return {"method": method, "faults": "flip", "ber": ber, "stages": stages, "measured": measured}


def texts(svg: str) -> set[str]:
    """The texts of a chart."""
    return set(re.findall(r"<text [^>]*>([^<]+)</text>", svg))


def test_what_is_named_in_the_energy_chart(records):
    (comparison,) = (one for one in collect(records)[0] if one.kind == "comparison")
    (figure,) = energy_chart(comparison)
    named = {f"{row['method']} ({100 * row['ber']:g}%)" for row in front_rows(comparison.record["rows"])}
    assert {"none (1%)", *named} <= texts(figure.svg)
    assert "NeuralFuse" in figure.svg and "no protection" in figure.svg
    rows = [
        compared_row("none", 0.7, 30.0), compared_row("clip", 0.72, 80.0), compared_row("bits", 1.0, 60.0),
        compared_row("convs", 2.0, 40.0, "convs"), compared_row("convl", 2.1, 70.0, "convl"),
        compared_row("smaller", 1.4, 50.0), compared_row("bits", 0.9, 10.0, ber=0.02),
    ]  # fmt: skip
    assert [row["method"] for row in front_rows(rows)] == ["none", "clip"]
    (figure,) = energy_chart(compared(*rows))
    assert {text for text in texts(figure.svg) if re.search(r"\(\d+%\)$", text)} == {
        "none (1%)", "clip (1%)", "convl (1%)", "smaller (1%)",
    }  # fmt: skip


def test_names_that_would_hide_others_are_left_out_or_moved():
    spots = {"first": (0.1, 0.9), "beside it": (0.11, 0.91), "far away": (0.6, 0.9), "at the end": (0.99, 0.5)}
    crowd = [(0.4 + 0.02 * one, 0.02 * two) for one in range(20) for two in range(20)]
    placed = dict(names_with_room({**spots, "in the crowd": (0.6, 0.2)}, [*spots.values(), *crowd]))
    assert placed["first"] == (pytest.approx(0.115), 0.9) and placed["far away"] == (pytest.approx(0.615), 0.9)
    assert abs(placed["beside it"][1] - placed["first"][1]) > 0.04  # above or below
    assert placed["at the end"][0] < 0.9  # before its point
    assert "in the crowd" not in placed


def test_colours_say_how_far_from_the_paper(page):
    assert 'title="+5.0 against the published value"' in page and 'class="down2" title="-12.0' in page
    tints = [Cell("", deviation).tint for deviation in (None, 1.0, 5.0, 20.0, -1.9, -5.0, -20.0)]
    assert tints == ["", "same", "up1", "up2", "same", "down1", "down2"]


def test_words_begin_at_the_left_and_numbers_end_at_the_right(page):
    rows = [("none", "97.4", "-"), ("convl", "-", "unets")]
    assert Table("", ("method", "CA", "best"), [[Cell(text) for text in row] for row in rows]).sides == [
        "said",
        "",
        "said",
    ]
    assert '<th scope="col" class="said">needs</th>' in page and '<th scope="col">CA</th>' in page


def test_the_scale_of_accuracies_has_room_where_they_are_high():
    with chart(4, 3) as made:
        axes = made.axes[0][0]
        stretch(axes, "x", 60)
        at = {accuracy: axes.transData.transform((accuracy, 0))[0] for accuracy in (60, 80, 90, 95, 98, 100)}
    assert at[60] < at[80] < at[90] < at[95] < at[98] < at[100]
    assert at[100] - at[98] > at[80] - at[60] > 0.8 * (at[90] - at[80])
    assert [f">{tick}<" in made.svg for tick in (50, 80, 98, 100)] == [False, True, True, True]
    with chart(4, 3) as made:
        stretch(made.axes[0][0], "y", 99.2)
    assert [f">{tick}<" in made.svg for tick in (98, 98.5, 99, 99.5, 100)] == [False, False, True, True, True]


def test_tables_are_there_as_markdown_and_latex_too(seen, tmp_path):
    files = seen.write(tmp_path / "report.html")
    assert [file.name for file in files] == ["report.html", "report.md", "report.tex"]
    markdown, latex = files[1].read_text(), files[2].read_text()
    assert "| method | needs | CA |" in markdown and "PA(NF)" in markdown
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 5
    assert r"protected-bits:bits=2" in latex


def test_a_portrait_says_what_the_model_says(fused):
    fuse, opened, data = fused
    base = opened.deployed
    record = make_portrait(fuse, opened, data, STUCK, chips=2, images=20, gallery=2)
    x, labels = plain_inputs(data.test, base.input_range), data.test.labels
    chips = STUCK.chips(2)
    for name, inputs in (("pa", x), ("pa_nf", transform(fuse, x))):
        for label in (0, 1):
            own = labels == label
            wanted = sum(accuracy(base.perturbed(chip), inputs[own], labels[own]) for chip in chips) / 2
            assert record["per_class"][name][label] == pytest.approx(wanted)
    assert len(record["outputs"]["panels"]) == 6
    last = record["outputs"]["panels"][4]
    order = record["outputs"]["labels"]
    assert last["title"] == "4% stuck" and len(last["points"]) == len(order) == 20
    reading = base.memory.read(Chip(STUCK, chips[0].seed))
    weights = record["weights"]
    assert weights["changed"] == len(reading.index)
    assert sum(weights["clean"]) == sum(weights["faulty"]) == base.memory.layout.words
    first = record["gallery"][0]
    pixels = {key: torch.tensor(list(_pixels(first[key]))).float() for key in ("x", "g", "f")}
    whole = (pixels["g"] > 0) & (pixels["g"] < 255)  # beyond, what is added is more than can be shown
    sums = (pixels["x"] + pixels["g"] - 127.5).clamp(0, 255)
    assert torch.allclose(sums[whole], pixels["f"][whole], atol=2.1)
    order = data.test.order(data.name, "portrait")
    added = fuse.perturbation(fuse.symmetric(x[order][labels[order] == 0][:1])).detach()
    assert torch.equal(pixels["g"], ((added.clamp(-1, 1) + 1) * 127.5).round().flatten())


def _pixels(text: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(text))).tobytes()


def test_charts_take_the_page_s_colours():
    with chart(2, 1) as made:
        made.axes[0][0].plot([0, 1], [0, 1], color=SERIES[2])
    svg = inline(made.svg, 'a "line"')
    assert "var(--series-3)" in svg and SERIES[2] not in svg
    assert 'aria-label="a &quot;line&quot;"' in svg


@pytest.mark.parametrize("missing", [0, 1])  # no protection, and a method
def test_a_comparison_that_is_not_finished_is_shown_as_far_as_it_is(missing, records, tmp_path):
    record = read_json(records / "below" / "comparison.json")
    record["rows"][missing]["measured"] = None
    record["rows"][2]["measured"]["energy"] = None
    write_json(tmp_path / "comparison.json", record)
    page = Report.of(tmp_path, "Part").html()
    assert "1 of 6 rows are not measured yet" in page and "energy: of weight accesses" in page


def test_evaluations_of_different_things_are_not_joined(records, tmp_path):
    for name in ("at-0.02", "at-0.04"):
        record = read_json(records / f"{name}.json")
        if name == "at-0.04":
            record["config"]["generator_memory"] = {"bits": 8}
        write_json(tmp_path / f"{name}.json", record)
    report = Report.of(tmp_path, "Two")
    assert not report.across
    assert [section.subtitle for section in report.sections] == [
        "2% stuck",
        "4% stuck, the generator in faulty memory too",
    ]


def test_faults_that_differ_in_more_than_their_rate_are_no_curve(records, tmp_path):
    for name, ber, share in (("a", 0.02, 0.5), ("b", 0.04, 1.0)):
        record = read_json(records / f"at-{ber}.json")
        record["config"]["faults"]["stuck_at_1"] = share
        write_json(tmp_path / f"{name}.json", record)
    assert not Report.of(tmp_path, "Two").across


def test_what_cannot_be_shown_is_said(tmp_path, records, capsys):
    with pytest.raises(NeuralFuseError, match="must hold records to report on"):
        Report.of(tmp_path, "Nothing")
    table = read_json(records / "table1.json")
    write_json(tmp_path / "old.json", {key: value for key, value in table.items() if key != "rows"})
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert "old.json must be as this version writes records" in capsys.readouterr().err
    (tmp_path / "old.json").unlink()
    evaluation = read_json(records / "at-0.02.json")
    del evaluation["config"]["chips"]
    write_json(tmp_path / "older.json", evaluation)
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert "older.json must be as this version writes records: KeyError('chips')" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CONTRAST = """pairs => {
  const style = getComputedStyle(document.documentElement);
  const levels = name => { const hex = style.getPropertyValue('--' + name).trim();
    return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255); };
  const light = c => { const l = c.map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  return pairs.map(([text, behind, share]) => {
    const paper = levels('paper'), own = light(levels(text));
    const other = light(levels(behind).map((v, i) => share * v + (1 - share) * paper[i]));
    return (Math.max(own, other) + 0.05) / (Math.min(own, other) + 0.05); });
}"""
TEXTS = [(text, "paper", 1) for text in ("ink", "muted", "link")] + [
    *(("ink", tint, 1) for tint in ("up1", "up2", "down1", "down2")),
    *(("ink", f"series-{number}", 0.5) for number in (1, 2)),  # the strongest cells of a transfer matrix
]
MARKS = [(f"series-{number}", "paper", 1) for number in range(1, 7)]
SMALLEST = """all => Math.min(...all.map(one => {
  const svg = one.ownerSVGElement;
  const size = parseFloat(getComputedStyle(one).fontSize);
  return size * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width; }))"""


def kept_records() -> set[str]:
    """The records of the folder of results that a report must show."""
    results = ROOT / "results"
    paths = (path for folder in ("comparisons", "paper", "portraits") for path in (results / folder).rglob("*.json"))
    return {str(path.relative_to(results)) for path in paths}


def test_the_records_that_were_measured_are_found_with_their_commands():
    found, damaged = collect(ROOT / "results")
    assert not damaged
    assert kept_records() <= {str(one.path) for one in found}
    assert all(one.command.startswith("neuralfuse ") for one in found)


@pytest.fixture(scope="module")
def committed() -> Report:
    """The report of what was measured."""
    return Report.of(ROOT / "results", "Measured")


@pytest.mark.slow
def test_the_records_that_were_measured_make_a_report(committed):
    """Each of them, with its own numbers, in all three forms."""
    assert not committed.damaged
    shown = {str(one.found.path): one for one in committed.sections}
    assert kept_records() <= shown.keys()
    page, markdown, latex = committed.html(), committed.markdown(), committed.latex()
    for one in shown.values():
        if one.found.kind == "comparison":
            drawn = {figure.title.partition(",")[0] for figure in one.figures}
            assert drawn >= {"All methods", "Accuracy against energy"}
            several = [len({row[of] for row in one.found.record["rows"]}) > 1 for of in ("ber", "method")]
            assert ("Accuracy against the rate" in drawn) == all(several)
            for row in one.found.record["rows"]:
                name, measured = re.escape(row["method"]), row["measured"]
                seen = rf"{measured['pa']:.1f}\D+{measured['pa_sd']:.1f}"
                assert re.search(rf"\| {name} \| [^\n]* \| {seen} \|", markdown), (one.found.path, name)
                assert re.search(rf">{name}</th>(<td[^>]*>[^<]*</td>)*?<td>{seen}<", page), (one.found.path, name)
                assert re.search(rf"{name} +&[^\n]*{measured['pa']:.1f}", latex), (one.found.path, name)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["every kind of record", "what was measured"])
def test_a_browser_draws_it(seen, committed, tmp_path, which, width, scheme):
    from playwright.sync_api import sync_playwright

    path = tmp_path / "report.html"
    (seen if which == "every kind of record" else committed).write(path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert not said
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        sizes = page.eval_on_selector_all(
            "svg",
            "all => all.map(one => [one.getBoundingClientRect().width, one.querySelectorAll('path, use').length])",
        )
        assert len(sizes) >= 6 and all(wide > 250 and shapes > 2 for wide, shapes in sizes), sizes
        images = page.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth)")
        assert images and all(images)
        assert page.eval_on_selector_all("svg text", SMALLEST) >= 11
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert min(page.evaluate(CONTRAST, TEXTS)) >= 4.5 and min(page.evaluate(CONTRAST, MARKS)) >= 3
        browser.close()


@pytest.mark.slow
def test_portrait_and_report_from_the_command_line(fused, tmp_path, capsys, monkeypatch):
    fuse, _, _ = fused
    options = ["--epochs", "1", "--threads", "1"]
    monkeypatch.chdir(tmp_path)
    assert run(["train-base", "--base", "resnet8", "--out", "base", *options]) == 0
    assert run(["train", "--base", "base", "--generator", "convs", "--ber", "0.04", "--out", "fuse", *options]) == 0
    assert (
        run(["portrait", "fuse", "--base", "base", "--ber", "0.04", "--chips", "2", "--out", "runs/portrait.json"]) == 0
    )
    capsys.readouterr()
    assert run(["report", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 1
    assert Path("report.html").stat().st_size > 50_000
