"""A gateway in front of an inference server: a NeuralFuse transforms the images, everything else passes unchanged.

`Settings` needs no server library. `neuralfuse.serve.run.serve` and `neuralfuse.serve.gateway.gateway` do.
"""

from neuralfuse.serve.settings import Settings

__all__ = ["Settings"]
