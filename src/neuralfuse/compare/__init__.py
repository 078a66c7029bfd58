"""Methods of protection side by side: one model, the same chips for all, paired intervals, what each costs."""

from neuralfuse.compare.comparison import SCHEMA, USUAL, Comparison, memory_energy
from neuralfuse.compare.show import as_latex, as_markdown, as_text

__all__ = ["SCHEMA", "USUAL", "Comparison", "as_latex", "as_markdown", "as_text", "memory_energy"]
