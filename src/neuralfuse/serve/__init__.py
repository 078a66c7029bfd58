"""A gateway in front of an inference server: images pass through a NeuralFuse, everything else untouched."""

from neuralfuse.serve.gateway import gateway
from neuralfuse.serve.run import serve
from neuralfuse.serve.settings import Settings

__all__ = ["Settings", "gateway", "serve"]
