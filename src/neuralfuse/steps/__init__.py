"""Trainings and measurements as a graph of steps: each is done once, kept in a store, and resumed after interruptions.

A step knows the steps that it needs and everything that its result depends on. The store keeps the result under a
digest of that. Engines run steps in this process, in worker processes, or on a cluster.
"""

from neuralfuse.steps.engines import Engine, engine
from neuralfuse.steps.measurements import EvaluationStep, LatencyStep
from neuralfuse.steps.provenance import Provenance
from neuralfuse.steps.runner import Progress
from neuralfuse.steps.scale import FACTS, SCALES, ImageSpec, Recipe, Scale, load_scale
from neuralfuse.steps.step import Step, counts
from neuralfuse.steps.trainings import BaseStep, ModuleStep, ProgressNote, StartStep
from neuralfuse.steps.work import Work, dry_run_text, status_text
from neuralfuse.steps.workspace import ANY_DEVICE, Workspace

__all__ = [
    "ANY_DEVICE",
    "FACTS",
    "SCALES",
    "BaseStep",
    "Engine",
    "EvaluationStep",
    "ImageSpec",
    "LatencyStep",
    "ModuleStep",
    "Progress",
    "ProgressNote",
    "Provenance",
    "Recipe",
    "Scale",
    "StartStep",
    "Step",
    "Work",
    "Workspace",
    "counts",
    "dry_run_text",
    "engine",
    "load_scale",
    "status_text",
]
