"""The stages from images to a record, and the files of each: base model, start, NeuralFuse, evaluation."""

from neuralfuse.pipeline.measuring import make_evaluation
from neuralfuse.pipeline.training import make_base, make_fuse, make_start

__all__ = ["make_base", "make_evaluation", "make_fuse", "make_start"]
