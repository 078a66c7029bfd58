"""Models that one can only ask: a function, an ONNX file, a server. Asked with care, and judged by their answers."""

from neuralfuse.blackbox.answers import KINDS, Answers
from neuralfuse.blackbox.boxes import Box, Function, OnnxFile, is_box, open_box
from neuralfuse.blackbox.careful import Careful, Limits, again
from neuralfuse.blackbox.choose import choice_summary, choose
from neuralfuse.blackbox.judge import judge, summary
from neuralfuse.blackbox.served import Served
from neuralfuse.blackbox.tune import tune, tuning_summary

__all__ = [
    "KINDS",
    "Answers",
    "Box",
    "Careful",
    "Function",
    "Limits",
    "OnnxFile",
    "Served",
    "again",
    "choice_summary",
    "choose",
    "is_box",
    "judge",
    "open_box",
    "summary",
    "tune",
    "tuning_summary",
]
