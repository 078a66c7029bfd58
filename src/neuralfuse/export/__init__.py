"""Uses of a trained NeuralFuse: transformed files and arrays, graphs for other runtimes, the Hugging Face Hub."""

from neuralfuse.export.apply import apply_array, apply_folder
from neuralfuse.export.graph import FORMATS, export
from neuralfuse.export.hub import pull, push

__all__ = ["FORMATS", "apply_array", "apply_folder", "export", "pull", "push"]
