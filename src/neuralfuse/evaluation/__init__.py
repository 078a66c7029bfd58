"""Evaluation on chips: raw per-chip accuracies, their means and intervals, and records."""

from neuralfuse.evaluation.chips import PartialRecord, measure_chips
from neuralfuse.evaluation.front import pareto
from neuralfuse.evaluation.measure import ChipResult, Evaluation, evaluate
from neuralfuse.evaluation.record import EVALUATION_SCHEMA, evaluation_record
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
from neuralfuse.evaluation.text import evaluation_text

__all__ = [
    "EVALUATION_SCHEMA",
    "ChipResult",
    "Evaluation",
    "PartialRecord",
    "Target",
    "chips_for_share",
    "evaluate",
    "evaluation_record",
    "evaluation_text",
    "mean",
    "mean_at_least",
    "measure_chips",
    "pareto",
    "sample_sd",
    "share_at_least",
    "t_interval",
    "t_quantile",
]
