"""The paper's tables and plots made anew, at three scales, from a graph of steps that are each done once."""

from neuralfuse.reproduce.engines import engine
from neuralfuse.reproduce.known import read_known
from neuralfuse.reproduce.make import Job
from neuralfuse.reproduce.place import ANY_DEVICE, Place
from neuralfuse.reproduce.runner import Progress
from neuralfuse.reproduce.scale import SCALES, load_scale
from neuralfuse.reproduce.show import as_markdown, as_text
from neuralfuse.reproduce.tables import TABLES, Request
from neuralfuse.reproduce.work import Work, outline, standing

__all__ = [
    "ANY_DEVICE",
    "SCALES",
    "TABLES",
    "Job",
    "Place",
    "Progress",
    "Request",
    "Work",
    "as_markdown",
    "as_text",
    "engine",
    "load_scale",
    "outline",
    "read_known",
    "standing",
]
