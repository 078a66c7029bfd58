"""Chips -> raw per-chip accuracies -> means, intervals and records."""

from neuralfuse.evaluation.measure import ChipResult, Evaluation, evaluate
from neuralfuse.evaluation.record import EVALUATION_SCHEMA, Run, evaluation_record
from neuralfuse.evaluation.stats import (
    chips_for_share,
    mean,
    mean_at_least,
    sample_sd,
    share_at_least,
    t_interval,
    t_quantile,
)
from neuralfuse.evaluation.target import Target

__all__ = [
    "EVALUATION_SCHEMA",
    "ChipResult",
    "Evaluation",
    "Run",
    "Target",
    "chips_for_share",
    "evaluate",
    "evaluation_record",
    "mean",
    "mean_at_least",
    "sample_sd",
    "share_at_least",
    "t_interval",
    "t_quantile",
]
