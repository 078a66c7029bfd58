"""Values that vary from run to run, for the ``run`` of records: command, time, versions, hardware.

The command line imports this module, and must start without torch: torch is imported where it is needed.
"""

from __future__ import annotations

import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_COMMAND: ContextVar[str | None] = ContextVar("command", default=None)
_USERINFO = re.compile(r"(?<=//)[^/?#]*@")
_VALUES = re.compile(r"(?<=[?&;#])([^=&;#]*)=[^&;#]*")


@contextmanager
def given_command(arguments: Sequence[str]) -> Iterator[None]:
    """Put this command into all records that are made in this context.

    Args:
        arguments: The arguments of ``neuralfuse``, as they were given. User names, passwords and the values of queries
            in addresses are left out.
    """
    text = shlex.join(["neuralfuse", *map(_without_secrets, arguments)])
    token = _COMMAND.set(text)
    try:
        yield
    finally:
        _COMMAND.reset(token)


def _without_secrets(argument: str) -> str:
    return _VALUES.sub(r"\1=...", _USERINFO.sub("", argument)) if "//" in argument else argument


def command() -> dict[str, str]:
    """Return the running command as ``{"command": ...}``; empty if Python code called the library."""
    text = _COMMAND.get()
    return {} if text is None else {"command": text}


class RunInfo:
    """Collects the ``run`` part of a record. Make it when the work begins, to record the time and commit of the start.

    Args:
        device: Device that the run computes on.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None
        if self._gpu is not None:
            import torch  # noqa: PLC0415

            torch.cuda.reset_peak_memory_stats(self._gpu)
        self._started = time.monotonic()
        self._commit = _commit()

    def collect(self) -> dict[str, Any]:
        """Return the ``run`` part of a record whose work ends now."""
        import torch  # noqa: PLC0415

        hardware, device_memory = _processor(), {}
        if self._gpu is not None:
            hardware += f", {torch.cuda.get_device_name(self._gpu)}"
            device_memory = {"peak_device_memory_bytes": torch.cuda.max_memory_allocated(self._gpu)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            **command(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
            **device_memory,
            "hardware": hardware,
            "threads": torch.get_num_threads(),
            "versions": {
                "neuralfuse": version("neuralfuse"),
                "torch": str(torch.__version__),
                "numpy": version("numpy"),
                "python": platform.python_version(),
            },
            "commit": self._commit,
        }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    for line in facts.read_text(encoding="utf-8").splitlines() if facts.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the source tree that this package runs from, or None if it is installed elsewhere."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
