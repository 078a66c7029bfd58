"""What a model answered: labels in any case, scores of all classes where it tells them."""

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
_LEAST = 1e-12  # a probability that is said to be 0


@dataclass(frozen=True)
class Answers:
    """Answers to N images.

    Attributes:
        kind: One of `KINDS`.
        labels: The likeliest class, int64 (N,); `NO_LABEL` where a score is no number.
        scores: float32 (N, K), logits or the logarithms of probabilities; None where only classes were told.
    """

    kind: str
    labels: Tensor
    scores: Tensor | None

    @staticmethod
    def of(values: NDArray[Any], *, classes: int, kind: str | None = None) -> Answers:
        """Return what rows of a model's output say.

        Args:
            values: (N, K) numbers are scores of all classes, in their order; (N, k) whole numbers are the k likeliest
                classes, the likeliest first; (N,) or (N, 1) whole numbers are labels.
            classes: How many there are.
            kind: What the numbers are, where their type does not say it: whole numbers may be logits too, and numbers
                in [0, 1] are taken for probabilities only if it says so.

        Raises:
            AnswerError: they are none of these.
        """
        if kind is not None and kind not in KINDS:
            raise unknown_name("kind of answers", kind, KINDS)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
            raise AnswerError(f"a model must answer with one row of numbers an image: got {_looks(values)}.")
        whole = np.issubdtype(values.dtype, np.integer)
        if kind is None:
            kind = LOGITS if not whole else LABELS if values.shape[1] == 1 else TOP_K
        if kind in (LABELS, TOP_K):
            wrong = not whole or values.shape[1] > classes or (kind == LABELS and values.shape[1] != 1)
            if wrong or (values.size and not 0 <= int(values.min()) <= int(values.max()) < classes):
                raise AnswerError(f"{kind} must be whole numbers in 0..{classes - 1}: got {_looks(values)}.")
            return Answers(kind, torch.from_numpy(values[:, 0].astype(np.int64)), None)
        if values.shape[1] != classes:
            raise AnswerError(f"{kind} must be one number a class, {classes} an image: got {_looks(values)}.")
        scores = torch.from_numpy(values.astype(np.float32))
        broken = scores.isnan().any(1)
        labels = scores.argmax(1).masked_fill(broken, NO_LABEL)
        if kind == PROBABILITIES:
            if len(scores) and (float(scores.nan_to_num().min()) < 0 or float(scores.nan_to_num().max()) > 1.001):
                raise AnswerError(f"probabilities must be in [0, 1]: got {float(scores.min()):g}..{scores.max():g}.")
            scores = scores.clamp_min(_LEAST).log()
        return Answers(kind, labels, scores)

    def right(self, labels: Tensor) -> Tensor:
        """Return for each answer whether it is the label: bool (N,)."""
        return self.labels == labels


def _looks(values: NDArray[Any]) -> str:
    return f"{values.dtype} of shape {values.shape}"
