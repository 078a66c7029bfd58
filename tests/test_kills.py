"""Runs that are killed or interrupted: nothing is lost, nothing is done twice, nothing differs."""

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
from typing import TYPE_CHECKING

import pytest
import torch

from helpers.commands import NEURALFUSE, child_environment, reproduced, started, torchrun
from neuralfuse.files import read_tensors
from neuralfuse.steps.store import MARKER

if TYPE_CHECKING:
    from distributed import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BASE = "train-base --base resnet8 --data digits --epochs 6 --batch 64 --validate-every 7 --threads 1"
FUSE = (
    "train --base {base} --generator unets --ber 0.05 --epochs 9 --validate-every 5 --n-chips 2 "
    "--validation-chips 1 --threads 1"
)


def killed_until_done(arguments: list[str], out: Path, seed: int) -> int:
    """Start a command again and again, killing it soon after each first checkpoint; return the kills."""
    chance, kills = random.Random(seed), 0
    while True:
        child = subprocess.Popen(
            [NEURALFUSE, *arguments, "--out", str(out), "--resume"],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=child_environment(),
        )  # fmt: skip
        before = _written(out)
        while kills < 4 and child.poll() is None and _written(out) == before:
            time.sleep(0.01)
        if kills < 4:
            time.sleep(chance.uniform(0, 0.6))
        if kills == 4 or child.poll() is not None:
            assert child.wait() == 0
            return kills
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1


def _written(out: Path) -> float:
    path = out / "checkpoint.safetensors"
    return path.stat().st_mtime if path.exists() else 0.0


def test_runs_killed_at_random_end_as_if_undisturbed(tmp_path):
    subprocess.run([NEURALFUSE, *BASE.split(), "--out", str(tmp_path / "base")], check=True, env=child_environment())
    fuse = FUSE.format(base=tmp_path / "base").split()
    subprocess.run([NEURALFUSE, *fuse, "--out", str(tmp_path / "fuse")], check=True, env=child_environment())
    kills = killed_until_done(BASE.split(), tmp_path / "base-killed", seed=1)
    kills += killed_until_done(fuse, tmp_path / "fuse-killed", seed=2)
    assert kills >= 2
    for name in ("base", "fuse"):
        whole, _ = read_tensors(tmp_path / name / "model.safetensors")
        again, _ = read_tensors(tmp_path / f"{name}-killed" / "model.safetensors")
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole)
        left = {path.name for path in (tmp_path / f"{name}-killed").iterdir() if not path.name.startswith(".")}
        assert left == {path.name for path in (tmp_path / name).iterdir()}


def test_ctrl_c_leaves_with_130_and_one_line(tmp_path):
    command = [NEURALFUSE, *BASE.replace("--epochs 6", "--epochs 400").split(), "--out", str(tmp_path)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    child = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    signal.signal(signal.SIGINT, before)
    assert child.stderr is not None
    for line in child.stderr:
        if "score" in line:
            break
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    assert err.splitlines()[-1].startswith("neuralfuse: interrupted. The same command with --resume")
    assert "Traceback" not in err


# Tables

FEW = ("table12", "--scale", "smoke", "--rows", "base=VGG11", "--rows", "generator=UNetS", "--rows", "generator=ConvS")


def without_run(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "run"}


def done(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (out / "steps").glob(f"*/{MARKER}")}


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
    from distributed import Client

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


# Processes that train together


def workers_of(torchrun_pid: int) -> list[int]:
    shown = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(torchrun_pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in shown.stdout.split()]


def test_a_job_goes_on_from_its_checkpoint_when_a_process_is_killed(tmp_path):
    """One of two processes is killed once there is a checkpoint; torchrun starts both again, to the same end."""
    neuralfuse = [str(Path(sys.executable).with_name("neuralfuse"))]
    environment = child_environment()
    base = str(tmp_path / "base")
    train = [*neuralfuse, "train-base", "--base", "resnet8", "--epochs", "2", "--batch", "64", "--out", base]
    subprocess.run(train, env=environment, check=True, capture_output=True, timeout=300)
    train = [*neuralfuse, "train", "--base", base, "--generator", "unets", "--ber", "0.05", "--n-chips", "2"]
    train += ["--epochs", "6", "--batch", "64", "--validate-every", "10", "--validation-chips", "2", "--json"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = torchrun(2, *train, "--out", str(whole), options=("--no-python",))
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
    record = json.loads(done.stdout)
    assert record["run"]["processes"] == 2

    command = torchrun(2, *train, "--out", str(cut), options=("--no-python", "--max-restarts", "1"))
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (cut / "checkpoint.safetensors").exists():
            assert job.poll() is None, job.communicate()
            time.sleep(0.02)
        os.kill(workers_of(job.pid)[-1], signal.SIGKILL)
        shown, errors = job.communicate(timeout=300)
    finally:
        job.kill()
    assert job.returncode == 0, errors
    again = json.loads(shown)
    assert not (cut / "model.safetensors.tmp").exists()
    ours, theirs = (read_tensors(folder / "model.safetensors")[0] for folder in (whole, cut))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again["history"] == record["history"]
