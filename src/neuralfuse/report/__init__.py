"""Records as pictures, and as one page: tables and charts, each with the record and the command behind it."""

from neuralfuse.report.page import Report
from neuralfuse.report.pictures import evaluations_picture, plan_picture, table_picture
from neuralfuse.report.portrait import make_portrait

__all__ = ["Report", "evaluations_picture", "make_portrait", "plan_picture", "table_picture"]
