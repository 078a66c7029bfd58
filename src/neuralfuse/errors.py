"""The exception family: every mistake a user can make ends in one of these, with one clear line.

A message says what must hold, what came, where, and what to do. The command line prints that line and exits with 2.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class NeuralFuseError(Exception):
    """Base of all errors that this library raises on purpose."""


class RateError(NeuralFuseError, ValueError):
    """A bit-error rate is not a fraction in [0, 1]."""


class ConfigError(NeuralFuseError, ValueError):
    """An option has an illegal value, or two options contradict each other."""


class UnknownNameError(NeuralFuseError, LookupError):
    """A name is not among the legal ones."""


class ShapeError(NeuralFuseError, ValueError):
    """A tensor or image has the wrong size."""


class FileFormatError(NeuralFuseError, ValueError):
    """A file is truncated, foreign, or does not fit what it should be loaded into."""


class DataError(NeuralFuseError, ValueError):
    """A data set is missing, empty or broken."""


class MissingExtraError(NeuralFuseError, ImportError):
    """An optional dependency is needed and not installed."""


class OutputError(NeuralFuseError, OSError):
    """A result cannot be written where it was asked to go."""


class DivergenceError(NeuralFuseError, ArithmeticError):
    """A training loss became NaN or infinite."""


class HubError(NeuralFuseError, ConnectionError):
    """A hub of models refuses, or cannot be reached."""


class ParityError(NeuralFuseError, ArithmeticError):
    """What was made to compute the same computes something else."""


class AnswerError(NeuralFuseError, ValueError):
    """A model that only answers refuses, or answers with something that is no answer."""


class BusyError(NeuralFuseError, ConnectionError):
    """A model that only answers cannot be asked now; it might help to ask again, ``after`` seconds if it said so."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class BudgetError(NeuralFuseError, RuntimeError):
    """More questions than were agreed on."""


class LostProcessError(NeuralFuseError, RuntimeError):
    """Another process of the same job is gone."""


class UnfinishedError(NeuralFuseError, RuntimeError):
    """Part of a long job failed; the rest is kept."""


def unknown_name(kind: str, name: str, legal: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown name, with the nearest legal one first."""
    names = list(legal)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Legal: {', '.join(names)}.")


def check_ber(ber: float, name: str = "ber") -> float:
    """Return a bit-error rate that is a fraction, or raise.

    Raises:
        RateError: ``ber`` is not a finite number in [0, 1].
    """
    if isinstance(ber, bool) or not isinstance(ber, (int, float)) or not math.isfinite(ber) or not 0 <= ber <= 1:
        raise RateError(f"{name} must be in [0, 1]: got {name}={ber}. Pass a fraction, not percent (1% is 0.01).")
    return float(ber)


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
