"""Records: an evaluation as one JSON object, with everything needed to repeat it."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralfuse.evaluation.measure import Evaluation
from neuralfuse.faults import FaultModel

EVALUATION_SCHEMA = "neuralfuse/evaluation/1"


def evaluation_record(
    result: Evaluation,
    *,
    faults: FaultModel,
    config: Mapping[str, Any],
    run: Run,
    published: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of an evaluation.

    Args:
        result: What was measured.
        faults: The fault model of its chips.
        config: Everything that the result depends on.
        run: Made when the evaluation began.
        published: The paper's row for the same measurement.
    """
    interval = result.rp_ci95
    return {
        "schema": EVALUATION_SCHEMA,
        "config": dict(config),
        "ber": faults.ber,
        "ber_kind": faults.kind,
        "changed_bits": result.changed_bits,
        "chips": len(result.per_chip),
        "ca_float": result.ca_float,
        "ca": result.ca,
        "pa": result.pa,
        "pa_sd": result.pa_sd,
        "ca_nf": result.ca_nf,
        "pa_nf": result.pa_nf,
        "pa_nf_sd": result.pa_nf_sd,
        "rp": result.rp,
        "rp_ci95": None if interval is None else list(interval),
        "published": None if published is None else dict(published),
        "per_chip": [asdict(chip) for chip in result.per_chip],
        "run": run.facts(),
    }


class Run:
    """What varies from run to run: time, versions, hardware. Made at the start, so that it knows the code that ran.

    Args:
        device: Where the run computes.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None
        if self._gpu is not None:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        self._started = time.monotonic()
        self._commit = _commit()

    def facts(self) -> dict[str, Any]:
        """Return the ``run`` part of a record that is finished now."""
        hardware, device_memory = _processor(), {}
        if self._gpu is not None:
            hardware += f", {torch.cuda.get_device_name(self._gpu)}"
            device_memory = {"peak_device_memory_bytes": torch.cuda.max_memory_allocated(self._gpu)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
            **device_memory,
            "hardware": hardware,
            "threads": torch.get_num_threads(),
            "versions": {
                "neuralfuse": version("neuralfuse"),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
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
    """Return the commit of the source tree this package runs from, or None when it is installed from elsewhere."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
