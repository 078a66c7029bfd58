"""Estimates of how long steps take, from their multiplications and the speed of the finished steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from neuralfuse.errors import FileFormatError
from neuralfuse.steps.step import Step
from neuralfuse.steps.workspace import Workspace

ASSUMED = {"cpu": 15e9, "cuda": 2e12}
"""Multiplications per second of one worker before any measurement: of one CPU core, and a guess for a GPU."""
LEAST = 0.5  # shortest time of a step, in seconds


@dataclass
class Speed:
    """The speed of one worker, by kind of step.

    Attributes:
        assumed: Multiplications per second for kinds without a finished step.
        measured: Multiplications per second by kind, from finished steps.
        count: Number of finished steps.
    """

    assumed: float
    measured: Mapping[str, float] = field(default_factory=dict)
    count: int = 0

    def seconds(self, step: Step) -> float:
        """Return the approximate upper limit of a step's time on one worker, in seconds."""
        return LEAST + step.macs / self.measured.get(step.kind, self.assumed)

    @property
    def source(self) -> str:
        """The basis of the estimate, in words."""
        if self.count:
            return f"at the speed of {self.count} finished steps"
        return f"assuming {self.assumed / 1e9:g} billion multiplications per second and worker"


def speed(steps: Iterable[Step], workspace: Workspace) -> Speed:
    """Return the speed of a store's finished steps."""
    macs: dict[str, float] = {}
    seconds: dict[str, float] = {}
    count = 0
    for step in steps:
        try:
            record = workspace.store.record(step.address, whole=False)
        except FileFormatError:
            continue
        if record is not None:
            count += 1
            macs[step.kind] = macs.get(step.kind, 0.0) + step.macs
            seconds[step.kind] = seconds.get(step.kind, 0.0) + record["run"]["seconds"]
    kind = "cuda" if workspace.device.startswith("cuda") else "cpu"
    return Speed(
        ASSUMED[kind], {name: macs[name] / seconds[name] for name in macs if min(macs[name], seconds[name]) > 0}, count
    )


def duration(seconds: float) -> str:
    """Return a time as text, in a suitable unit."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
