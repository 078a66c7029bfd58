"""Ways to protect a model in a faulty memory, behind one interface, so that they can be compared and put together.

A new method subclasses `Method`: a dataclass with a name, what access it needs, and `protect`.
"""

from neuralfuse.methods.base import Access, Method, Preparation, Protected, Setting
from neuralfuse.methods.measure import measure, seconds
from neuralfuse.methods.registry import METHODS, identity, needs, parse

__all__ = [
    "METHODS",
    "Access",
    "Method",
    "Preparation",
    "Protected",
    "Setting",
    "identity",
    "measure",
    "needs",
    "parse",
    "seconds",
]
