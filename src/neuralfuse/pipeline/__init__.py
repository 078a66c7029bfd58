"""The steps from images to a record, with what each leaves on disk: base model, NeuralFuse, evaluation."""

from neuralfuse.pipeline.measuring import measure, summary
from neuralfuse.pipeline.training import base_config, make_base, make_fuse, make_start

__all__ = ["base_config", "make_base", "make_fuse", "make_start", "measure", "summary"]
