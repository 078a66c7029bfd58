"""All tables at smoke scale, and runs that are killed: nothing is lost, nothing is done twice, nothing differs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from distributed import Client

from conftest import child_environment
from neuralfuse import published
from neuralfuse.files import read_json
from neuralfuse.reproduce import TABLES, as_text
from neuralfuse.steps.store import MARKER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NEURALFUSE = str(Path(sys.executable).with_name("neuralfuse"))
FEW = ("table12", "--scale", "smoke", "--rows", "base=VGG11", "--rows", "generator=UNetS", "--rows", "generator=ConvS")


def started(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [NEURALFUSE, "reproduce", *options, "--out", str(out), "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    )  # fmt: skip


def reproduced(out: Path, *options: str) -> list[dict]:
    child = started(out, *options)
    text, errors = child.communicate(timeout=1700)
    assert child.returncode == 0, errors[-3000:]
    return json.loads(text)["tables"]


def without_run(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "run"}


def done(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (out / "steps").glob(f"*/{MARKER}")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> dict[str, dict]:
    """Every table and figure, once."""
    out = tmp_path_factory.mktemp("smoke")
    tables = {record["table"]: record for record in reproduced(out, "all", "--scale", "smoke")}
    for name, record in tables.items():
        assert record == read_json(out / f"{name}-smoke-reference.json", "neuralfuse/table/1")
    for name in ("figure1b", "figure5", "figure6", "figure7"):
        assert (out / f"{name}-smoke-reference.png").stat().st_size > 20_000
    return tables


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_whole_and_has_the_published_values_beside_its_own(name, smoke):
    record = smoke[name]
    assert len(record["rows"]) == len(TABLES[name].rows)
    assert all(row["measured"] is not None for row in record["rows"])
    if name.startswith("table"):
        assert [row["of"] | row["published"] for row in record["rows"]] == published.rows(name)
    for row in record["rows"]:
        measured = row["measured"]
        if "pa_nf" in measured:
            chips = measured["per_chip"]
            assert len(chips["seed"]) == measured["chips"] == 4
            assert measured["pa_nf"] == pytest.approx(sum(chips["pa_nf"]) / 4)
            gains = [after - before for after, before in zip(chips["pa_nf"], chips["pa"], strict=True)]
            assert measured["rp"] == pytest.approx(sum(gains) / 4)
            assert measured["pa"] == pytest.approx(sum(chips["pa"]) / 4)
            assert 0.002 < measured["changed_bits"] < 0.05
            assert row["step"] in record["steps"]
    text = as_text(record)
    assert "not measured yet" not in text
    assert text.count("(") > len(record["rows"]) or name == "figure7"


def of(record: dict, **where) -> dict:
    (row,) = (row for row in record["rows"] if where.items() <= row["of"].items())
    return row


def steps(record: dict, row: dict) -> tuple[dict, dict, list[dict]]:
    """The configurations of a row's base model and module, and of the base models that this was trained on."""
    evaluation = record["steps"][row["step"]]
    module = record["steps"][evaluation["module"]]
    return record["steps"][evaluation["base"]], module, [record["steps"][name] for name in module["bases"]]


def test_table_12_recovers(smoke):
    assert of(smoke["table12"], base="VGG19", ber=0.01, generator="UNetL")["measured"]["rp"] > 0


@pytest.mark.parametrize("name", ["table1", "table16", "table17", "table18", "table19", "table20"])
def test_a_transfer_is_measured_on_a_model_that_training_did_not_see(name, smoke):
    rows = smoke[name]["rows"]
    for row in rows:
        base, module, sources = steps(smoke[name], row)
        assert (base in sources) == (row["of"]["source"] == row["of"]["target"])
        assert module["eopm"]["ber"] == pytest.approx(3 * row["of"]["train_ber"])
        assert row["measured"]["ber"] == pytest.approx(3 * row["of"]["ber"])
    assert {row["of"]["source"] == row["of"]["target"] for row in rows} >= {False}


def test_table_21_has_two_sources(smoke):
    for row in smoke["table21"]["rows"]:
        assert len({source["network"] for source in steps(smoke["table21"], row)[2]}) == 2


@pytest.mark.parametrize("name", ["table22", "table23", "table24"])
def test_b_bits_are_b_bits(name, smoke):
    rows = smoke[name]["rows"]
    assert all(row["measured"]["bits"] == row["of"]["bits"] for row in rows)
    assert {row["of"]["bits"] for row in rows} == set(range(2, 9))
    same = [row for row in rows if (row["of"]["base"], row["of"]["generator"]) == ("ResNet18", "ConvL")]
    clean = {row["of"]["bits"]: row["measured"]["ca"] for row in same}
    assert clean[8] > 70 > clean[2], "two bits are not enough"
    assert min(clean[7], clean[6], clean[5]) > clean[8] - 10, "five are, rounded to the nearest as the paper's were"
    seeds = {tuple(row["measured"]["per_chip"]["seed"]) for row in rows}
    assert len(seeds) == 1, "the same chips"


def test_tables_of_training_options_have_them(smoke):
    for row in smoke["table10"]["rows"]:
        assert steps(smoke["table10"], row)[1]["eopm"]["lam"] == row["of"]["lambda"]
    for row in smoke["figure7"]["rows"]:
        assert steps(smoke["figure7"], row)[1]["eopm"]["n_chips"] == row["of"]["n"]
    assert {steps(smoke["table11"], row)[1]["generator"] for row in smoke["table11"]["rows"]} == {"uip"}
    bits = [row["measured"]["adversarial_bits"] for row in smoke["table25"]["rows"]]
    assert bits == sorted(bits)
    assert bits[0] < bits[-1]
    assert all(steps(smoke["table26"], row)[0]["qat"]["awp"] > 0 for row in smoke["table26"]["rows"])


def test_figures_derived_from_recovery_are(smoke):
    for row in smoke["table3"]["rows"]:
        measured, same = row["measured"], {key: row["of"][key] for key in ("base", "ber", "generator")}
        assert measured["rp"] == of(smoke["table12"], **same)["measured"]["rp"]
        assert measured["efficiency_ratio"] == pytest.approx(1e6 * measured["rp"] / measured["parameters"])
    for row in smoke["table9"]["rows"]:
        assert row["measured"]["latency_ms"] > 0
    for row in smoke["figure1b"]["rows"]:
        saved = of(smoke["table2"], base="ResNet18", generator=row["of"]["generator"])["measured"]["energy_saving"]
        assert row["measured"]["energy_saving"] == saved


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    (record,) = reproduced(tmp_path_factory.mktemp("undisturbed"), *FEW, "--workers", "0")
    return record


def test_a_run_killed_ten_times_ends_with_the_same_record(undisturbed, tmp_path):
    """At random moments all over the run. Only the command is killed: its worker processes must end by themselves."""
    chance, moments = random.Random(5), []
    goals = sorted(chance.randrange(len(undisturbed["steps"]) - 2) for _ in range(10))  # steps done before a kill
    for kill, goal in enumerate(goals):
        child = started(tmp_path, *FEW, "--workers", str(kill % 2))
        before, changes = _files(tmp_path), chance.randrange(1, 6)
        while child.poll() is None and (changes > 0 or len(done(tmp_path)) < goal):
            now = _files(tmp_path)
            changes -= now != before
            before = now
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        moments.append(len(done(tmp_path)) if child.poll() is None else None)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert None not in moments, moments
    assert len(set(moments)) >= 4, moments
    (record,) = reproduced(tmp_path, *FEW, "--workers", "0")
    assert without_run(record) == without_run(undisturbed)


def _files(out: Path) -> set[tuple[str, float]]:
    found = set()
    for path in (out / "steps").rglob("*"):
        try:
            found.add((str(path), path.stat().st_mtime))
        except OSError:  # removed meanwhile
            continue
    return found


def test_files_that_cannot_be_written_fail_their_steps_and_nothing_else(undisturbed, tmp_path):
    """The operating system refuses all files of more than 64 KiB, as it does when a disk is full."""
    command = f"ulimit -f 64; exec {NEURALFUSE} reproduce {' '.join(FEW)} --out {tmp_path} --workers 0 --retries 0"
    child = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=child_environment(), timeout=600, check=False
    )
    assert child.returncode == 1, child.stderr
    failed = [line for line in child.stderr.splitlines() if "failed: " in line]
    assert failed and all("File too large" in line for line in failed), child.stderr
    assert "Traceback" not in child.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 64 * 1024]
    (record,) = reproduced(tmp_path, *FEW, "--workers", "0")
    assert without_run(record) == without_run(undisturbed)


CLUSTER = """
import logging, sys
from distributed import LocalCluster

if __name__ == "__main__":
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with LocalCluster(**options) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


def test_a_dask_worker_killed_in_the_middle_costs_one_step(undisturbed, tmp_path):
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    out = tmp_path / "out"
    cluster = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    try:
        address = cluster.stdout.readline().strip()
        child = started(out, *FEW, "--scheduler", address)
        with Client(address) as client:
            pids = client.run(os.getpid)
            worker, (key, *_) = next(found for found in iter(partial(_at_a_module, client, child), None) if found)
            time.sleep(2)  # who is at what is looked at every second
            before = done(out)
            os.kill(pids[worker], signal.SIGKILL)
        text, errors = child.communicate(timeout=300)
    finally:
        cluster.communicate("", timeout=60)
    assert child.returncode == 0, errors
    (record,) = json.loads(text)["tables"]
    assert without_run(record) == without_run(undisturbed)
    after = done(out)
    assert key.rpartition("-")[0] not in before
    assert before.items() <= after.items(), "what was finished is not done again"
    (line,) = [line for line in errors.splitlines() if "was lost" in line]
    assert line.startswith(f"worker {worker} was lost; another one continues its step: train ")
    finished = [line for line in errors.splitlines() if " of 13: " in line]
    assert len(finished) == len(set(finished)) == 13, errors
    assert "failed" not in errors


def _at_a_module(client: Client, child: subprocess.Popen[str]) -> tuple[str, tuple[str, ...]] | tuple[()]:
    """A worker that is at the training of a module, with the key of its step."""
    assert child.poll() is None, child.stderr.read()
    time.sleep(0.05)
    found = ((worker, keys) for worker, keys in client.processing().items() if keys and keys[0].startswith("module-"))
    return next(found, ())
