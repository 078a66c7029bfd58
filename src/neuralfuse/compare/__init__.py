"""Comparison of protection methods: one model, the same chips for all methods, paired intervals, and costs."""

from neuralfuse.compare.comparison import SCHEMA, USUAL, Comparison, memory_energy
from neuralfuse.compare.show import as_latex, as_markdown, as_text

__all__ = ["SCHEMA", "USUAL", "Comparison", "as_latex", "as_markdown", "as_text", "memory_energy"]
