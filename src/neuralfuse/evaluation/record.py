"""Records: an evaluation as one JSON object, with everything needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from neuralfuse.evaluation.measure import Evaluation
from neuralfuse.faults import FaultModel
from neuralfuse.runs import RunInfo

EVALUATION_SCHEMA = "neuralfuse/evaluation/1"


def evaluation_record(
    result: Evaluation,
    *,
    faults: FaultModel,
    config: Mapping[str, Any],
    run: RunInfo,
    published: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of an evaluation.

    Args:
        result: The results of the evaluation.
        faults: The fault model of the chips.
        config: Everything that the result depends on.
        run: The run's information, collected since the evaluation began.
        published: The paper's row for the same measurement; None if there is none.
    """
    return {
        "schema": EVALUATION_SCHEMA,
        "config": dict(config),
        "ber": faults.ber,
        "ber_kind": faults.kind,
        **result.values(),
        "published": None if published is None else dict(published),
        "per_chip": [asdict(chip) for chip in result.per_chip],
        "run": run.collect(),
    }
