"""The paper's tables and plots, reproduced: rows become steps, and records hold measured and published values."""

from neuralfuse.reproduce.make import Job
from neuralfuse.reproduce.prior import read_prior
from neuralfuse.reproduce.show import as_markdown, as_text
from neuralfuse.reproduce.tables import TABLES, Request

__all__ = ["TABLES", "Job", "Request", "as_markdown", "as_text", "read_prior"]
