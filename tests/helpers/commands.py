"""Commands as a user runs them: in processes of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from neuralfuse.cli.main import run

NEURALFUSE = str(Path(sys.executable).with_name("neuralfuse"))


def child_environment() -> dict[str, str]:
    """Environment for processes that a test starts."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a command line did in a folder; it must not fail."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env={**child_environment(), "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def followed(line: str, folder: Path) -> str:
    """What a line of a page printed in a folder; it must not fail.

    A shell does everything but our own commands: these run here, which spares each of them the start of a process.
    """
    if not re.match("(neuralfuse|for) ", line):
        return shell(line, folder).stdout
    calls = shell('neuralfuse() { printf "%q " "$@"; echo; }\n' + line, folder).stdout.splitlines()
    shown = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(shown):
        for call in calls:
            assert run(shlex.split(call)) == 0, call
    return shown.getvalue()


def torchrun(count: int, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    """The command line of so many processes that train together."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return [*torchrun, str(count), *options, *arguments]


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
