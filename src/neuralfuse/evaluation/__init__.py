"""Chips -> raw per-chip accuracies -> means, intervals and records."""

from neuralfuse.evaluation.measure import ChipResult, Evaluation, evaluate
from neuralfuse.evaluation.record import EVALUATION_SCHEMA, Run, evaluation_record
from neuralfuse.evaluation.stats import mean, sample_sd, t_interval, t_quantile

__all__ = [
    "EVALUATION_SCHEMA",
    "ChipResult",
    "Evaluation",
    "Run",
    "evaluate",
    "evaluation_record",
    "mean",
    "sample_sd",
    "t_interval",
    "t_quantile",
]
