"""How long steps will take: their multiplications, at the speed of those that are finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from neuralfuse.errors import FileFormatError
from neuralfuse.steps.step import Step
from neuralfuse.steps.workspace import Workspace

ASSUMED = {"cpu": 15e9, "cuda": 2e12}
"""Multiplications a second of one worker, before anything was measured: one core here; a guess for a GPU."""
LEAST = 0.5  # seconds that any step takes


@dataclass
class Speed:
    """How fast one worker is, by kind of step.

    Attributes:
        assumed: Multiplications a second of kinds that nothing is known of.
        measured: Of the others, from finished steps.
        count: How many finished steps that is.
    """

    assumed: float
    measured: Mapping[str, float] = field(default_factory=dict)
    count: int = 0

    def seconds(self, step: Step) -> float:
        """Return about how long a step takes one worker, at most."""
        return LEAST + step.macs / self.measured.get(step.kind, self.assumed)

    @property
    def source(self) -> str:
        """Where the estimate comes from."""
        if self.count:
            return f"at the speed of {self.count} finished steps"
        return f"assuming {self.assumed / 1e9:g} billion multiplications a second for each worker"


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
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
