"""The exceptions: every mistake of a user raises one of them, with one clear line.

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
    """A file is damaged, has another format, or does not fit its target."""


class DataError(NeuralFuseError, ValueError):
    """A data set is missing, empty or broken."""


class MissingExtraError(NeuralFuseError, ImportError):
    """An optional dependency is needed but not installed."""


class OutputError(NeuralFuseError, OSError):
    """A result cannot be written to the requested place."""


class DivergenceError(NeuralFuseError, ArithmeticError):
    """A training loss became NaN or infinite."""


class HubError(NeuralFuseError, ConnectionError):
    """A model hub refuses a request or cannot be reached."""


class ParityError(NeuralFuseError, ArithmeticError):
    """An exported graph gives other outputs than its module."""


class AnswerError(NeuralFuseError, ValueError):
    """A black-box model refuses a request, or its answer is invalid."""


class BusyError(NeuralFuseError, ConnectionError):
    """A black-box model is unavailable. A retry may help, after ``after`` seconds if the model gave a delay."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class BudgetError(NeuralFuseError, RuntimeError):
    """A black-box model would get more images than the budget allows."""


class LostProcessError(NeuralFuseError, RuntimeError):
    """Another process of the same job has ended."""


class UnfinishedError(NeuralFuseError, RuntimeError):
    """Part of a long job failed. The finished parts are kept."""


def unknown_name(kind: str, name: str, legal: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown name. It suggests the nearest legal name and lists all of them."""
    names = list(legal)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Legal: {', '.join(names)}.")


def check_ber(ber: float, name: str = "ber") -> float:
    """Return a bit-error rate as a float if it is a fraction.

    Raises:
        RateError: ``ber`` is not a finite number in [0, 1].
    """
    if isinstance(ber, bool) or not isinstance(ber, (int, float)) or not math.isfinite(ber) or not 0 <= ber <= 1:
        raise RateError(f"{name} must be in [0, 1]: got {name}={ber}. Pass a fraction, not percent (1% is 0.01).")
    return float(ber)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
