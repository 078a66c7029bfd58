"""Listeners of a training run: a progress bar on standard error, and TensorBoard files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from neuralfuse.errors import MissingExtraError, OutputError


class Listener(Protocol):
    """An object that is notified of every step and every validation. It must not change anything."""

    def stepped(self, step: int, total: int, losses: Mapping[str, float]) -> None:
        """Take note that ``step`` of ``total`` steps are done. ``losses`` are those of the last step."""

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note that the model was validated after ``step`` steps. Accuracies are in percent."""

    def close(self) -> None:
        """Take note that the run has ended or was interrupted."""


class ProgressBar:
    """A progress bar on a terminal. Elsewhere it prints one line per validation, so that log files stay short."""

    def __init__(self, title: str) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
        self._task = self._bar.add_task(title, total=None, note="")
        self._title = title

    def stepped(self, step: int, total: int, losses: Mapping[str, float]) -> None:
        """Move the bar. It appears with the first step, so that a run that fails before prints no bar."""
        if self._console.is_terminal:
            self._bar.start()
        self._bar.update(self._task, completed=step, total=total, note=_line(losses, ".3f"))

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the metrics."""
        text = f"{self._title}: step {step}: {_line(metrics, '.2f')}"
        if self._console.is_terminal:
            self._bar.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._console.is_terminal:
            self._bar.stop()


class TensorBoard:
    """Scalars for TensorBoard, in local files.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError("--tensorboard needs tensorboard: pip install 'neuralfuse[tracking]'.") from error
        try:
            self._writer: Any = SummaryWriter(str(folder))
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error}. Choose another place with --tensorboard.") from error

    def stepped(self, step: int, total: int, losses: Mapping[str, float]) -> None:
        """Write the losses."""
        for name, value in losses.items():
            self._writer.add_scalar(f"loss/{name}", value, step)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"validation/{name}", value, step)

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()


def _line(values: Mapping[str, float], form: str) -> str:
    return "  ".join(f"{name} {value:{form}}" for name, value in values.items())
