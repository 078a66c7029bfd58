"""Black-box models: a function, an ONNX file or a server that only answers queries, within limits, and with a cache."""

from neuralfuse.blackbox.answers import KINDS, Answers
from neuralfuse.blackbox.boxes import Box, Function, OnnxFile
from neuralfuse.blackbox.cache import AnswerCache
from neuralfuse.blackbox.choose import choice_text, choose
from neuralfuse.blackbox.judge import answers_text, judge
from neuralfuse.blackbox.limited import LimitedBox, Limits, retry
from neuralfuse.blackbox.references import is_box, open_box
from neuralfuse.blackbox.served import Served
from neuralfuse.blackbox.tune import tune, tuning_text

__all__ = [
    "KINDS",
    "AnswerCache",
    "Answers",
    "Box",
    "Function",
    "LimitedBox",
    "Limits",
    "OnnxFile",
    "Served",
    "answers_text",
    "choice_text",
    "choose",
    "is_box",
    "judge",
    "open_box",
    "retry",
    "tune",
    "tuning_text",
]
