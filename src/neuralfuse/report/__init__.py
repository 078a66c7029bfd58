"""Records as one page: tables, charts and pictures, each with the record and command behind it."""

from neuralfuse.report.page import Report
from neuralfuse.report.portrait import make_portrait

__all__ = ["Report", "make_portrait"]
