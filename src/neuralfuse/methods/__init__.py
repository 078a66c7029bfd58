"""Ways to protect a model in a faulty memory, behind one interface, so that they can be compared and combined.

A new method subclasses `Method`: a dataclass with a name, the access that it needs, and `protect`.
"""

from neuralfuse.methods.base import Access, Method, Preparation, Protected, TrainingContext, Workload
from neuralfuse.methods.measuring import answer_seconds, measure_protected
from neuralfuse.methods.registry import METHODS, identity, needs, parse

__all__ = [
    "METHODS",
    "Access",
    "Method",
    "Preparation",
    "Protected",
    "TrainingContext",
    "Workload",
    "answer_seconds",
    "identity",
    "measure_protected",
    "needs",
    "parse",
]
