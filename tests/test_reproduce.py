"""The paper's tables as grids of steps: rows, addresses, the store, the runner, what is shown."""

from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from helpers.commands import child_environment
from helpers.places import ROOT
from neuralfuse import published
from neuralfuse.cli.main import run
from neuralfuse.errors import ConfigError, DataError, FileFormatError, OutputError, UnfinishedError, UnknownNameError
from neuralfuse.faults import Stuck
from neuralfuse.reproduce import TABLES, Job, Request, as_markdown, as_text, read_prior
from neuralfuse.reproduce.prior import joined
from neuralfuse.reproduce.record import table_record
from neuralfuse.reproduce.show import notes
from neuralfuse.reproduce.tables import choose
from neuralfuse.steps import Workspace, engine, engines, load_scale
from neuralfuse.steps.cost import Speed, duration
from neuralfuse.steps.engines import InProcess, OnDask
from neuralfuse.steps.measurements import EvaluationStep
from neuralfuse.steps.perform import Outcome, perform
from neuralfuse.steps.runner import Progress, ordered, run_steps
from neuralfuse.steps.scale import FACTS
from neuralfuse.steps.step import Step
from neuralfuse.steps.store import Store
from neuralfuse.steps.trainings import ModuleStep
from neuralfuse.steps.work import Work, dry_run_text, status_text

REQUEST = Request(load_scale("smoke"))


@cache
def is_measured(name: str) -> bool:
    """Whether a table's values are measured on chips; others are worked out."""
    return TABLES[name].step(REQUEST, TABLES[name].rows[0]) is not None


# The grid


def test_every_table_of_the_paper_with_rows_is_there():
    assert {name for name in TABLES if name.startswith("table")} == {
        name for name, table in published.paper()["tables"].items() if "rows" in table
    }
    assert {"figure1b", "figure5", "figure6", "figure7"} <= set(TABLES)


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("table")])
def test_a_table_has_the_paper_s_rows_and_values(name, tmp_path):
    rows = published.rows(name)
    record = table_record(name, TABLES[name].rows, REQUEST, Workspace(tmp_path))
    assert [row["of"] | row["published"] for row in record["rows"]] == rows
    assert [row["misprint"] for row in record["rows"]] == [published.misprint(name, row) for row in rows]
    assert all((row["measured"] is None) == is_measured(name) for row in record["rows"])


@pytest.mark.parametrize("scale", ["full", pytest.param("cpu", marks=pytest.mark.slow), "smoke"])
def test_every_row_has_a_step_at_every_scale(scale):
    request, every = Request(load_scale(scale)), []
    for name, table in TABLES.items():
        steps = [table.step(request, row) for row in table.rows]
        assert all((step is None) != is_measured(name) for step in steps), name
        every += [step for step in steps if step]
    assert len({step.address for step in every}) == len(set(every))
    assert all(step.macs > 0 for step in ordered(every))


def row_of(name: str, **where) -> dict:
    (row,) = (row for row in TABLES[name].rows if where.items() <= row.items())
    return row


def step_of(name: str, request: Request = REQUEST, **where) -> EvaluationStep:
    step = TABLES[name].step(request, row_of(name, **where))
    assert isinstance(step, EvaluationStep)
    return step


def all_steps(*tables: str) -> list[Step]:
    return list(Job.of(tables, {}, REQUEST, Workspace(Path("nowhere"))).work.steps)


def test_a_transfer_is_trained_on_another_base_model_and_at_a_higher_rate():
    step = step_of("table1", source="ResNet18", target="VGG19", ber=0.01, generator="UNetL")
    assert step.base.network == "vgg19-tiny"
    assert [base.network for base in step.module.bases] == ["resnet18-tiny"]
    assert (step.faults.ber, step.module.faults.ber) == (0.03, 0.045)


def test_an_ensemble_has_two_sources():
    step = step_of("table21", target="VGG11", ber=0.01, generator="ConvL")
    assert [base.network for base in step.module.bases] == ["resnet18-tiny", "vgg19-tiny"]
    assert step.base.network == "vgg11-tiny"


def test_fewer_bits_are_measured_with_the_module_of_eight():
    eight, four = (step_of("table22", base="VGG19", bits=bits, generator="ConvL") for bits in (8, 4))
    assert (eight.bits, four.bits) == (8, 4)
    assert eight.module == four.module
    assert eight.alone.address != four.alone.address
    assert (eight.config().get("rounding"), four.config()["rounding"]) == (None, "nearest")


@pytest.mark.parametrize("scale", ["full", "cpu"])
def test_tables_12_to_15_have_the_paper_s_data_sets(scale):
    names = {"table12": "cifar10", "table13": "gtsrb", "table14": "imagenet10", "table15": "cifar100"}
    for table, name in names.items():
        steps = (TABLES[table].step(Request(load_scale(scale)), row) for row in TABLES[table].rows)
        assert {step.base.images.name for step in steps} == {name}


def test_misprints_of_the_tables_are_misprints_of_the_figures(tmp_path):
    rows = table_record("figure5", TABLES["figure5"].rows, REQUEST, Workspace(tmp_path))["rows"]
    marked = {(row["of"]["base"], row["of"]["generator"]): row["misprint"] for row in rows if row["misprint"]}
    assert list(marked) == [("VGG19", "ConvS")]
    assert "table6 with the 30.6% saving" in marked["VGG19", "ConvS"]


def test_a_table_says_how_well_its_values_are_known():
    record = json.loads(ELSEWHERE.read_text())
    (line,) = [line for line in notes(record) if "95% intervals" in line]
    widths = [row["measured"]["pa_nf_ci95"] for row in record["rows"] if row["measured"]]
    most = max(high - low for low, high in widths) / 2
    assert line.startswith(f"95% intervals of PA(NF) are up to +-{most:.1f} points")
    assert f"points, but {sum(high - low > 2 for low, high in widths)} of" in line


def test_lambda_n_and_k_reach_the_training():
    assert step_of("table10", base="ResNet18", generator="ConvL", **{"lambda": 0.1}).module.eopm.lam == 0.1
    assert step_of("figure7", n=20).module.eopm.n_chips == 20
    bits = [step_of("table25", k_bits=k).module.eopm.adversarial_bits for k in (100, 5000, 100_000)]
    assert bits[0] < bits[1] < bits[2]
    full = Request(load_scale("full"))
    assert step_of("table25", full, k_bits=5000).module.eopm.adversarial_bits == 5000, "the paper's own network"


def test_the_adversarially_trained_base_model_is_one():
    step = step_of("table26", ber=0.01, generator="ConvL")
    assert step.base.network == "preact-resnet18-tiny"
    assert step.base.qat.awp > 0 == step_of("table12", base="VGG11", ber=0.01, generator="ConvL").base.qat.awp


def test_tables_share_steps():
    shared = row_of("table12", base="VGG11", ber=0.01, generator="UNetS")
    where = {name: shared[name] for name in ("base", "ber", "generator")}
    assert step_of("table12", **where).address == step_of("table3", **where).address
    ours = {step.address for step in all_steps("table16") if isinstance(step, ModuleStep)}
    theirs = {step.address for step in all_steps("table12")}
    assert ours <= theirs


def test_modules_of_a_generator_share_the_start_that_knows_no_base_model():
    modules = [step for step in all_steps("table11", "table12") if isinstance(step, ModuleStep)]
    starts = {(step.generator, step.start) for step in modules}
    assert len(starts) == 7
    for generator, start in starts:
        if generator == "uip":
            assert start is None, "a universal perturbation does not look"
        else:
            assert start.generator == generator
            assert start.needs == ()
    for step in modules:
        assert step.eopm.class_head == (0 if step.generator == "uip" else 1)
        assert step.start in (None, *step.needs)
    paper = next(step for step in modules if step.generator == "convs")
    assert replace(paper, start=None).address != paper.address
    assert "start" not in replace(paper, start=None).config()


def test_equal_steps_have_one_address_in_all_tables():
    steps = all_steps("all")
    assert len({step.address for step in steps}) == len(set(steps)) == len(steps)


def test_an_address_says_what_a_result_depends_on():
    step = step_of("table12", base="VGG11", ber=0.01, generator="UNetS")
    changes = [
        replace(step, chips=5), replace(step, bits=7), replace(step, faults=Stuck(ber=0.01)),
        replace(step, test_images=7),
        replace(step, base=replace(step.base, qat=replace(step.base.qat, lr=0.2))),
        replace(step, module=replace(step.module, eopm=replace(step.module.eopm, lam=1.0))),
    ]  # fmt: skip
    assert len({one.address for one in [step, *changes]}) == len(changes) + 1
    assert step.address == "evaluation-" + step.address.partition("-")[2]
    assert step_of("table12", Request(load_scale("smoke"), seed=1), base="VGG11", ber=0.01, generator="UNetS") != step


def test_meanings_of_the_rate_are_tables_of_their_own(tmp_path):
    jobs = [
        Job.of(["table12"], {}, Request(load_scale("smoke"), faults), Workspace(tmp_path))
        for faults in ("stuck", "flip")
    ]
    assert jobs[0].path("table12") != jobs[1].path("table12")
    assert not {step.address for step in jobs[0].work.steps if step.kind not in ("base", "start")} & {
        step.address for step in jobs[1].work.steps
    }
    (record,) = jobs[1].records()
    assert all(row["published"] is None for row in record["rows"]), "the paper inverted no bits"
    assert "the paper did not measure this kind of errors" in as_text(record)


def test_rows_are_chosen_by_their_columns():
    chosen = choose(["table12", "table6"], {"base": ["VGG11", "VGG16"], "ber": ["0.01"]})
    assert len(chosen["table12"]) == 12
    assert len(chosen["table6"]) == len(TABLES["table6"].rows), "it has no such column"
    with pytest.raises(UnknownNameError, match=r"unknown table 'table4'.*Legal: all, table1, table2"):
        choose(["table4"])
    with pytest.raises(UnknownNameError, match=r"unknown column of the rows 'bass'.*Did you mean 'base'"):
        choose(["table12"], {"bass": ["VGG11"]})
    with pytest.raises(UnknownNameError, match=r"unknown value of base 'VGG12'.*Legal: ResNet18, ResNet50, VGG11"):
        choose(["table12"], {"base": ["VGG12"]})
    targets = choose(["table1", "table10"], {"base": ["VGG16"]})
    assert {row["target"] for row in targets["table1"]} == {"VGG16"}
    assert "table10" not in targets, "it has no row of VGG16"


# Scales


def test_a_scale_of_one_s_own(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(
        'title = "mine"\nchips = 7\n[bases]\nVGG11 = "vgg11-quarter"\n[data.GTSRB]\nname = "gtsrb"\n'
        'bases.VGG11 = "vgg11"\neopm.batch = 16\n[qat]\nrecipe = "paper"\n[eopm]\nepochs = 2\n'
    )
    scale = load_scale(str(own))
    recipe = scale.recipe("GTSRB")
    assert (scale.name, scale.chips, scale.until) == ("mine", 7, None)
    assert recipe.bases == {"VGG11": "vgg11"}
    assert (recipe.qat.epochs, recipe.eopm.epochs, recipe.eopm.batch) == (300, 2, 16)
    with pytest.raises(ConfigError, match=r"scale mine must have a recipe for CIFAR-10: \[data.CIFAR-10\] is missing"):
        scale.recipe("CIFAR-10")
    with pytest.raises(ConfigError, match="scale mine must name a network for ResNet18"):
        Request(scale).base("GTSRB", "ResNet18")


WHOLE = 'title = "x"\nchips = 3\n[bases]\n[data.B]\nname = "digits"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "must be TOML"),
        ('title = "x"\nchips = 3\n', r"must have a title, chips, \[bases\] and \[data.NAME\]"),
        ('title = "x"\nchips = 0\n[bases]\n[data]\n', "chips of scale own must be a whole number of at least 1: got 0"),
        ('title = "x"\nchips = 2.5\n[bases]\n[data]\n', "chips of scale own must be a whole number .* got 2.5"),
        ('title = "x"\nchips = 2\nuntil = 0\n[bases]\n[data]\n', "until of scale own must be a positive number: got 0"),
        ('title = "x"\nchips = 2\nuntil = inf\n[bases]\n[data]\n', "until of scale own must be a positive number"),
        (f"{WHOLE}[qat]\nawp = 0.1\n", "unknown entry of .qat. 'awp'"),
        (f"{WHOLE}[eopm]\nber = 0.1\n", "unknown entry of .eopm. 'ber'"),
        ('title = "x"\nchip = 3\n[bases]\n[data]\n', "unknown entry of scale own 'chip'"),
        ('title = "x"\nchips = 3\n[bases]\nA = "vgg12"\n[data.B]\nname = "digits"\n', "unknown base model 'vgg12'"),
        ('title = "x"\nchips = 3\n[bases]\n[data.B]\nname = "cifar"\n', "unknown data set 'cifar'"),
        (f"{WHOLE}[eopm]\nlrr = 1\n", "unknown entry of .eopm. 'lrr'"),
        (f"{WHOLE}[qat]\nepochs = 0\n", "epochs must be at least 1"),
    ],
)  # fmt: skip
def test_a_scale_that_is_none(text, message, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        load_scale(str(tmp_path / "own.toml"))


def test_unknown_scales_and_faults_list_the_legal_ones():
    with pytest.raises(UnknownNameError, match=r"unknown scale 'tiny'.*Legal: full, cpu, smoke, FILE.toml"):
        load_scale("tiny")
    with pytest.raises(UnknownNameError, match=r"unknown meaning of the rate .* Legal: reference, stuck, flip"):
        Request(load_scale("smoke"), "lines")


def test_what_is_known_of_the_digits_is_true():
    from neuralfuse.data import load_data

    data, facts = load_data("digits"), FACTS["digits"]
    assert (data.channels, data.image_size, len(data.classes)) == (facts.channels, (facts.size,) * 2, facts.classes)
    assert (len(data.train), len(data.test)) == (facts.train, facts.test)


def test_a_scale_that_lacks_networks_or_data_shows_the_rest(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text('title = "mine"\nchips = 2\n[bases]\nVGG11 = "vgg11-tiny"\n[data.GTSRB]\nname = "digits"\n')
    request = Request(load_scale(str(own)))
    for name in ("table13", "table2", "table9", "figure6"):
        record = table_record(name, TABLES[name].rows, request, Workspace(tmp_path))
        assert len(record["rows"]) == len(TABLES[name].rows)
        assert all(row["measured"] is None for row in record["rows"])
    (tmp_path / "smoke.toml").write_text(own.read_text())
    with pytest.raises(ConfigError, match="a scale must not have the name of a built-in one .*: got .*smoke.toml"):
        load_scale(str(tmp_path / "smoke.toml"))


# Records from elsewhere

ELSEWHERE = ROOT / "results/paper/table13-cpu-reference.json"


def test_rows_known_from_elsewhere_are_taken_over_and_not_measured_again(tmp_path):
    request = Request(load_scale("cpu"))
    known = read_prior([ELSEWHERE], request)
    theirs = [row for row in known["table13"]["rows"] if row["measured"]]
    of_vgg11 = {"base": ["VGG11"], "ber": ["0.01"]}
    job = Job.of(["table13"], of_vgg11, request, Workspace(tmp_path), known)
    assert len(theirs) >= 6
    assert not job.work.steps
    assert Job.of(["table13"], of_vgg11, request, Workspace(tmp_path)).work.steps
    assert Job.of(["table13"], of_vgg11, replace(request, seed=1), Workspace(tmp_path), known).work.steps  # other steps
    (record,) = job.records()
    assert [row for row in record["rows"] if row["measured"]] == theirs
    assert (record["steps"], record["learning"]) == (known["table13"]["steps"], known["table13"]["learning"])
    assert record["run"]["seconds"] == known["table13"]["run"]["seconds"]
    with pytest.raises(ConfigError, match="a record of --known must be of a table to reproduce: got one of table13"):
        Job.of(["table12"], {}, request, Workspace(tmp_path), known)


def test_one_s_own_rows_stand_before_known_ones(tmp_path):
    known = json.loads(ELSEWHERE.read_text())
    first, second = [row for row in known["rows"] if row["measured"]][:2]
    own = {**first, "measured": {**first["measured"], "pa": 1.0}}
    rows = [{**row, "measured": None} if row["of"] != first["of"] else own for row in known["rows"]]
    run = {**known["run"], "seconds": 10.0, "hardware": ["a machine"], "steps": {}}
    record = joined({**known, "rows": rows, "steps": {}, "learning": {}, "run": run}, known)
    assert [row["measured"]["pa"] for row in record["rows"] if row["measured"]][:2] == [1.0, second["measured"]["pa"]]
    assert record["run"]["hardware"] == [*known["run"]["hardware"], "a machine"]
    assert record["run"]["seconds"] == known["run"]["seconds"]  # of all steps, each once


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"seed": 3}, "a record of --known must be made with .*'seed': 3.*: .*known.json has .*'seed': 0"),
        ({"config": {"scale": "full", "faults": "flip", "seed": 0}}, {}, "known.json has .*'full'"),
        ({"schema": "neuralfuse/evaluation/1"}, {}, "must have schema 'neuralfuse/table/1'"),
        ({"config": None}, {}, "known.json must be a complete record of a table: it has no config"),
    ],
)
def test_known_records_must_be_of_the_same_making(change, options, message, tmp_path):
    path = tmp_path / "known.json"
    record = {**json.loads(ELSEWHERE.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    with pytest.raises((ConfigError, FileFormatError), match=message):
        read_prior([path], Request(load_scale("cpu"), **options))


# The store


@dataclass(frozen=True)
class Note(Step):
    """Writes a file, or fails as often as it is told to."""

    name: str
    after: tuple[Note, ...] = ()
    failures: int = 0

    kind = "note"

    @property
    def needs(self):
        return self.after

    def config(self):
        return {"name": self.name, "needs": [one.address for one in self.after]}

    def perform(self, workspace):
        folder = workspace.store.folder(self.address)
        tries = folder.parent / f"{self.name}.tries"
        count = int(tries.read_text()) if tries.exists() else 0
        tries.write_text(str(count + 1))
        if count < self.failures:
            raise OSError("no space left on device")
        (folder / "text.txt").write_text(self.name)
        (folder / "checkpoint.safetensors").write_text("of no use any more")
        return {"length": len(self.name), "run": {"seconds": 2.0, "commit": "c", "finished": "now"}}

    @property
    def title(self):
        return f"note {self.name}"

    @property
    def macs(self):
        return 30e9


def tries(workspace: Workspace, step: Note) -> int:
    path = workspace.store.folder(step.address).parent / f"{step.name}.tries"
    return int(path.read_text()) if path.exists() else 0


def go(steps, workspace, **options) -> tuple[Progress, list[str]]:
    said: list[str] = []
    state = Work.of(steps, workspace).run(
        InProcess(threads=1), retries=options.pop("retries", 1), say=said.append, **options
    )
    return state, said


def test_a_step_is_done_once_and_after_what_it_needs(tmp_path):
    workspace, first = Workspace(tmp_path), Note("first")
    second, third = Note("second", (first,)), Note("third", (first,))
    state, said = go([third, second], workspace)
    assert state.over
    assert said == ["1 of 3: note first", "2 of 3: note third", "3 of 3: note second"]
    record = workspace.store.record(first.address)
    assert record["result"] == {"length": 5}
    assert record["run"]["seconds"] == 2.0
    assert list(record["files"]) == ["text.txt"]
    assert not (workspace.store.folder(first.address) / "checkpoint.safetensors").exists()
    go([second, Note("fourth", (second,))], workspace)
    assert [tries(workspace, one) for one in (first, second, third)] == [1, 1, 1]


@pytest.mark.parametrize("file", ["text.txt", "step.json"])
@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_a_damaged_step_is_done_again_and_no_other(file, damage, tmp_path):
    workspace, first = Workspace(tmp_path), Note("first")
    second = Note("second", (first,))
    go([second], workspace)
    path = workspace.store.folder(first.address) / file
    text = path.read_text()
    if damage == "remove":
        path.unlink()
    else:
        path.write_text(text[: len(text) // 2] if damage == "cut" else text.replace("first", "fiddled", 1))
    state, said = go([second], workspace)
    assert state.over
    assert workspace.store.record(first.address)["result"] == {"length": 5}
    assert (tries(workspace, first), tries(workspace, second)) == (2, 1)
    removed = damage == "remove" and file == "step.json"
    told = [line for line in said if "The step is done again." in line and first.address in line]
    assert len(told) == (0 if removed else 1)


def test_who_asks_how_far_it_is_removes_nothing(tmp_path):
    workspace, step = Workspace(tmp_path), Note("first")
    go([step], workspace)
    path = workspace.store.folder(step.address) / "text.txt"
    path.write_text("?")
    work = Work.of([step], workspace)
    assert status_text(work).startswith("0 finished, 0 running, 0 failed, 1 waiting")
    assert "1 of them to do" in dry_run_text(work, 1, 1)
    assert path.read_text() == "?"
    assert (path.parent / "step.json").exists()


def test_a_worker_checks_what_it_finds_too(tmp_path):
    workspace, step = Workspace(tmp_path), Note("alone")
    go([step], workspace)
    (workspace.store.folder(step.address) / "text.txt").write_text("?")
    outcome = perform(step, workspace, 1)
    assert outcome.error is None
    assert "text.txt must not change after it was written" in outcome.said[0]


def test_a_step_made_from_something_else_is_done_again(tmp_path, monkeypatch):
    """A base model that is trained anew need not be the same to the last bit: what was made from it goes with it."""
    workspace, first = Workspace(tmp_path), Note("first")
    second = Note("second", (first,))
    go([second], workspace)
    monkeypatch.setattr(Note, "perform", _differently(Note.perform))
    workspace.store.discard(first.address)
    assert workspace.store.record(second.address) is None
    state, said = go([second], workspace)
    assert state.over
    assert (tries(workspace, first), tries(workspace, second)) == (2, 2)
    workspace.store.discard(first.address)
    go([second], workspace)
    assert (tries(workspace, first), tries(workspace, second)) == (3, 2), "the same again: nothing to do"


def _differently(perform):
    def changed(self, workspace):
        return {**perform(self, workspace), "luck": 1}

    return changed


def test_a_worker_that_finds_a_damaged_need_has_it_done_first(tmp_path):
    class Late(InProcess):
        """Damages the first step once the second is handed out."""

        def submit(self, step, workspace, turn):
            if step.name == "second" and tries(workspace, first) == 1:
                (workspace.store.folder(first.address) / "text.txt").write_text("?")
            super().submit(step, workspace, turn)

    workspace, first = Workspace(tmp_path), Note("first")
    second, said = Note("second", (first,)), []
    assert run_steps([second], workspace, Late(threads=1), say=said.append).over
    assert (tries(workspace, first), tries(workspace, second)) == (2, 1)
    assert len([line for line in said if "text.txt must not change after it was written" in line]) == 1


def test_a_full_disk_at_the_end_keeps_the_checkpoint(tmp_path, monkeypatch):
    workspace, step = Workspace(tmp_path), Note("one")
    checkpoint = workspace.store.folder(step.address) / "checkpoint.safetensors"

    def full(path, value):
        raise OutputError(f"cannot write {path}: no space left on device.")

    monkeypatch.setattr("neuralfuse.steps.store.write_json", full)
    state, said = go([step, Note("other")], workspace, retries=0)
    assert set(state.failed.values()) == {
        f"cannot write {workspace.store.folder(one.address) / 'step.json'}: no space left on device."
        for one in (step, Note("other"))
    }
    assert checkpoint.exists()
    monkeypatch.undo()
    assert not go([step], workspace)[0].failed
    assert not checkpoint.exists()


def test_a_step_that_another_process_is_at_waits_behind_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("neuralfuse.steps.runner._ASK_AGAIN", 0.01)
    workspace, busy, free = Workspace(tmp_path), Note("busy"), Note("free")

    class Elsewhere(InProcess):
        def next(self, seconds):
            outcome = super().next(seconds)
            if outcome and outcome.address == free.address:
                held.__exit__(None, None, None)
            return outcome

    held = workspace.store.locked(busy.address)
    assert held.__enter__()
    said = []
    assert run_steps([busy, free], workspace, Elsewhere(threads=1), say=said.append).over
    assert said == ["1 of 2: note free", "2 of 2: note busy"]
    assert (tries(workspace, busy), tries(workspace, free)) == (1, 1)


def test_a_file_system_without_locks_does(tmp_path, monkeypatch):
    def none(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    workspace, step = Workspace(tmp_path), Note("one")
    assert not go([step], workspace)[0].failed
    assert not workspace.store.is_held(step.address)


def test_a_scheduler_that_goes_away_ends_the_run(tmp_path):
    class Gone:
        status = "closed"

    with pytest.raises(UnfinishedError, match="the Dask scheduler must run until all steps are done: it has stopped"):
        OnDask(Gone(), threads=1).next(0.01)


def test_a_failed_step_is_tried_again_then_reported_and_nothing_else_is_lost(tmp_path):
    workspace, good, bad = Workspace(tmp_path), Note("good"), Note("bad", failures=3)
    after = Note("after", (bad,))
    state, said = go([good, after], workspace, retries=1)
    assert state.finished == {good.address}
    assert state.failed == {bad.address: "OSError: no space left on device"}
    assert state.blocked == {after.address}
    assert [line for line in said if "is retried" in line] == [
        "note bad failed and is retried: OSError: no space left on device"
    ]
    assert workspace.store.failure(bad.address) == "OSError: no space left on device"
    state, _ = go([good, after], workspace, retries=1)
    assert state.over
    assert not state.failed
    assert workspace.store.failure(bad.address) is None
    assert tries(workspace, good) == 1


def test_a_lock_ends_with_its_holder(tmp_path):
    store = Store(tmp_path)
    assert not store.is_held("note-1")
    with store.locked("note-1"):
        assert store.is_held("note-1")
    assert not store.is_held("note-1")


def test_other_images_are_refused(tmp_path):
    store = Store(tmp_path)
    for _ in range(2):
        store.check_same_images("digits", {"test_fingerprint": "a"})
    (tmp_path / "data" / "digits.json").write_text("{")
    store.check_same_images("digits", {"test_fingerprint": "a"})
    with pytest.raises(DataError, match=r"the images of digits must be the same as in the earlier steps of"):
        store.check_same_images("digits", {"test_fingerprint": "b"})


def test_an_engine_that_loses_a_step_gets_it_again(tmp_path):
    class Forgetful(InProcess):
        lost = False

        def next(self, seconds):
            if not self.lost:
                self.lost = True
                _, step, _ = self._waiting.pop(0)
                return Outcome(step.address, error="no worker finished it")
            return super().next(seconds)

    workspace, step, said = Workspace(tmp_path), Note("one"), []
    assert run_steps([step], workspace, Forgetful(threads=1), say=said.append).finished == {step.address}
    assert said[0] == "note one failed and is retried: no worker finished it"


# What is shown


def test_a_dry_run_runs_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["reproduce", "all", "--scale", "full", "--dry-run", "--workers", "4", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "train resnet18 on cifar10" in text
    assert "evaluate vgg19 on cifar10, 0.01 reference, behind unets (0.01 reference)" in text
    assert "with 4 at a time, assuming 15 billion multiplications per second and worker" in text
    assert not out.exists()


def test_times_come_from_finished_steps(tmp_path):
    assert Speed(15e9).seconds(Note("x")) == pytest.approx(0.5 + 2)
    assert Speed(15e9, {"note": 30e9}, 1).seconds(Note("x")) == pytest.approx(0.5 + 1)
    assert [duration(seconds) for seconds in (3, 600, 36_000, 864_000)] == [
        "3 seconds", "10.0 minutes", "10.0 hours", "10.0 days",
    ]  # fmt: skip


def test_status_says_where_steps_stand(tmp_path, capsys):
    job = Job.of(
        ["table12"], {"base": ["VGG11"], "generator": ["UNetS"], "ber": ["0.01"]}, REQUEST, Workspace(tmp_path)
    )
    base, start = job.work.steps[:2]
    job.workspace.store.fail(base.address, "OSError: no space left on device")
    with job.workspace.store.locked(start.address):
        job.workspace.store.tell(start.address, done=3, total=20, note="clean 1.0")
        arguments = "reproduce table12 --scale smoke --rows base=VGG11 --rows generator=UNetS --rows ber=0.01 --status"
        assert run([*arguments.split(), "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0 finished, 1 running, 1 failed, 3 waiting; at most about ")
    assert lines[1] == "failed: train vgg11-tiny on digits: OSError: no space left on device"
    assert lines[2].startswith("running: teach unets the classes of digits: 3 of 20")


def test_status_is_of_what_was_last_begun_there_where_no_table_is_named(tmp_path, monkeypatch, capsys):
    own = tmp_path / "mine.toml"
    own.write_text('title = "mine"\nchips = 2\n[bases]\nVGG11 = "vgg11-tiny"\n[data.GTSRB]\nname = "digits"\n')
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "out")
    assert run(["reproduce", "table7", "--scale", "smoke", "--workers", "0", "--out", out]) == 0
    second = ["reproduce", "table6", "--scale", "mine.toml", "--rows", "kind=base", "--workers", "0", "--out", out]
    assert run(second) == 0
    capsys.readouterr()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(["reproduce", "--status", "--out", out]) == 0
    assert capsys.readouterr().out.startswith("0 finished, 0 running, 0 failed, 0 waiting")
    kept = json.loads((tmp_path / "out" / "last.json").read_text())
    assert (kept["tables"], kept["rows"], kept["scale"]) == (["table6"], ["kind=base"], str(own))


def test_published_values_stand_beside_measured_ones(tmp_path):
    record = table_record("table6", TABLES["table6"].rows, Request(load_scale("full")), Workspace(tmp_path))
    assert [row["measured"]["twma"] for row in record["rows"]] == [row["published"]["twma"] for row in record["rows"]]
    assert "| base | ResNet18 | 2,755,968 (2,755,968) |" in as_markdown(record)
    text = as_text(record)
    assert text.startswith("Table 6. Total weight memory accesses")
    assert "in brackets: the paper" in text


def test_energy_tables_at_full_scale_are_those_of_the_energy_command(tmp_path):
    from neuralfuse.energy.tables import paper_tables

    full = Request(load_scale("full"))
    for name, value in (("table2", "energy_saving"), ("table8", "mac_energy_saving"), ("table7", "params")):
        ours = table_record(name, TABLES[name].rows, full, Workspace(tmp_path))["rows"]
        theirs = paper_tables()["tables"][name]["rows"]
        wanted = [row["parameters" if name == "table7" else "ours"] for row in theirs]
        assert [row["measured"][value] for row in ours] == pytest.approx(wanted)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("table99 --scale smoke", "unknown table 'table99'"),
        ("--scale smoke", "tables must be named: got none. Legal: all, table1, table2"),
        ("--status", "--out must be the folder of an earlier run: out is not. Pass that folder, or name tables."),
        ("table12 --scale huge", "unknown scale 'huge'"),
        ("table12 --scale smoke --faults lines", "unknown meaning of the rate"),
        ("table12 --scale smoke --rows VGG11", "--rows must be COLUMN=VALUE, e.g. base=VGG11: got 'VGG11'"),
        ("table12 --scale smoke --rows base=VGG", "unknown value of base 'VGG'"),
        ("table12 --scale smoke --workers -1", "workers must be at least 0: got workers=-1"),
        ("table12 --scale smoke --retries -1", "retries must be at least 0: got retries=-1"),
        ("table12 --workers 0", "needs --data-dir: got none. Pass the folder of the data set. --scale smoke needs"),
        ("table14 --workers 0 --data-dir nowhere", "imagenet10/train must hold class folders: no such folder"),
        ("table12 --scale smoke --scheduler tcp://127.0.0.1:1", "--scheduler must be the address of a running Dask"),
    ],
)  # fmt: skip
def test_nonsense_gets_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "PATIENCE", 0.3)  # nothing listens on port 1
    assert run(["reproduce", *options.split(), "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


FRESH_PAGES = """
import resource, torch
from neuralfuse.steps.engines import keep_freed_memory
def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(1 << 21).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = fresh_pages()
keep_freed_memory()
fresh_pages()
print(given_back, fresh_pages())
"""


class AtOnce:
    """Stands for the client of a cluster: runs what it is given where it is given it."""

    def submit(self, function, *given, key, pure, priority):
        self.key = key
        function(*given)
        return self

    def add_done_callback(self, call):
        call(self)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have settings of their own")
def test_freed_memory_is_kept_for_the_next_tensor():
    dask_s = {**child_environment(), "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PAGES], env=dask_s, capture_output=True, text=True, check=True, timeout=120
    )
    given_back, kept = map(int, done.stdout.split())
    assert given_back >= 20  # fresh ones for each tensor
    assert kept < given_back / 10


def test_a_worker_has_its_memory_kept_before_it_runs_a_step(monkeypatch):
    called = []
    monkeypatch.setattr(engines, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(engines, "perform", lambda step, workspace, threads: called.append(step))
    OnDask(AtOnce(), threads=1).submit(Note("a step"), Workspace(Path("nowhere")), 0)
    assert called == [True, Note("a step")]


def test_worker_processes_need_dask(monkeypatch):
    from neuralfuse.errors import MissingExtraError

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(engines, "import_module", missing)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'neuralfuse\[reproduce\]', or pass --workers 0"),
        engine(workers=2, threads=1),
    ):
        pass


def test_failed_steps_end_in_one_line_and_a_table_without_them(tmp_path, monkeypatch, capsys):
    def full_disk(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("neuralfuse.steps.trainings.make_fuse", full_disk)
    monkeypatch.chdir(tmp_path)
    arguments = "reproduce table12 --scale smoke --rows base=VGG11 --rows generator=UNetS --rows ber=0.01 --workers 0"
    assert run([*arguments.split(), "--out", "out"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("neuralfuse: 1 of 5 steps failed, and 1 more need them. Finished steps are kept in ")
    assert line.endswith("train unets for vgg11-tiny on digits, 0.03 reference, N 1: OSError: no space left on device")
    record = json.loads((tmp_path / "out" / "table12-smoke-reference.json").read_text())
    assert all(row["measured"] is None for row in record["rows"])
    assert issubclass(UnfinishedError, RuntimeError)
    assert issubclass(DataError, ValueError)


def test_a_table_says_that_generators_were_taught_classes(tmp_path):
    record = table_record("table12", TABLES["table12"].rows[:1], REQUEST, Workspace(tmp_path))
    line = "generators were also taught the classes (the paper's were not)"
    for module, told in (({"eopm": {"class_head": 0.0}}, False), ({"eopm": {"class_head": 1.0}}, True)):
        assert (line in as_text({**record, "steps": {"module-1": module}})) == told
    assert line not in as_text(record)


def test_the_scale_without_classes_is_cpu_in_all_else():
    cpu, without = load_scale("cpu"), load_scale(str(ROOT / "results" / "paper" / "without-class-head.toml"))
    assert set(without.recipes) == {"CIFAR-10", "GTSRB"}
    for data, own in without.recipes.items():
        with_them = cpu.recipes[data]
        assert own == replace(with_them, pretrain=None, eopm=replace(with_them.eopm, class_head=0.0, lr=2e-3))
    assert replace(cpu, name="", title="", recipes={}) == replace(without, name="", title="", recipes={})
