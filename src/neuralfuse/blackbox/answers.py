"""Answers of a black-box model: always labels, and the scores of all classes if the model returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralfuse.errors import AnswerError, unknown_name

LOGITS, PROBABILITIES, TOP_K, LABELS = KINDS = ("logits", "probabilities", "top-k", "labels")
NO_LABEL = -1
_LEAST = 1e-12  # in place of a probability of 0, whose logarithm is infinite


@dataclass(frozen=True)
class Answers:
    """Answers for N images.

    Attributes:
        kind: One of `KINDS`.
        labels: The most likely class, int64 (N,); `NO_LABEL` if a score is NaN.
        scores: float32 (N, K), logits or log-probabilities; None if the model returns classes only.
    """

    kind: str
    labels: Tensor
    scores: Tensor | None

    @staticmethod
    def of(values: NDArray[Any], *, classes: int, kind: str | None = None) -> Answers:
        """Return the answers in the rows of a model's output.

        Args:
            values: Scores of all K classes, (N, K); or integers: the k most likely classes, the first one the most
                likely, (N, k); or labels, (N,) or (N, 1).
            classes: Number of classes.
            kind: One of `KINDS`. By default integers are labels or top-k classes, and other numbers logits: it is
                needed for probabilities and for integer logits.

        Raises:
            AnswerError: the output does not have this form.
        """
        if kind is not None and kind not in KINDS:
            raise unknown_name("kind of answers", kind, KINDS)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
            raise AnswerError(f"a model must answer with one row of numbers per image: got {_describe(values)}.")
        whole = np.issubdtype(values.dtype, np.integer)
        if kind is None:
            kind = LOGITS if not whole else LABELS if values.shape[1] == 1 else TOP_K
        if kind in (LABELS, TOP_K):
            wrong = not whole or values.shape[1] > classes or (kind == LABELS and values.shape[1] != 1)
            if wrong or (values.size and not 0 <= int(values.min()) <= int(values.max()) < classes):
                raise AnswerError(f"{kind} must be whole numbers in 0..{classes - 1}: got {_describe(values)}.")
            return Answers(kind, torch.from_numpy(values[:, 0].astype(np.int64)), None)
        if values.shape[1] != classes:
            raise AnswerError(f"{kind} must be one number per class, {classes} per image: got {_describe(values)}.")
        scores = torch.from_numpy(values.astype(np.float32))
        broken = scores.isnan().any(1)
        labels = scores.argmax(1).masked_fill(broken, NO_LABEL)
        if kind == PROBABILITIES:
            if len(scores) and (float(scores.nan_to_num().min()) < 0 or float(scores.nan_to_num().max()) > 1.001):
                raise AnswerError(f"probabilities must be in [0, 1]: got {float(scores.min()):g}..{scores.max():g}.")
            scores = scores.clamp_min(_LEAST).log()
        return Answers(kind, labels, scores)

    def right(self, labels: Tensor) -> Tensor:
        """Return whether each answer equals its label: bool (N,)."""
        return self.labels == labels


def _describe(values: NDArray[Any]) -> str:
    return f"{values.dtype} of shape {values.shape}"
