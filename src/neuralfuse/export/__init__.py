"""A NeuralFuse outside of training: files and arrays transformed, and the module as a graph for other runtimes."""

from neuralfuse.export.apply import apply_array, apply_folder
from neuralfuse.export.graph import FORMATS, export

__all__ = ["FORMATS", "apply_array", "apply_folder", "export"]
