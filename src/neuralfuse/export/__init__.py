"""A NeuralFuse after training: files and arrays transformed, a graph for other runtimes, a repository on the Hub."""

from neuralfuse.export.apply import apply_array, apply_folder
from neuralfuse.export.graph import FORMATS, export
from neuralfuse.export.hub import pull, push

__all__ = ["FORMATS", "apply_array", "apply_folder", "export", "pull", "push"]
