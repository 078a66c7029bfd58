"""Make neural networks survive low-voltage memory.

Quantize a classifier's weights into a simulated memory (`deploy`), read them through chips whose cells fail (`Chip`,
`Stuck`), train NeuralFuse against many of them (`train_fuse`), and measure what it recovers (`evaluate`).

The public names stand in ``__init__.pyi``, each once. They are imported when first used, so that importing the package
costs nothing.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

__version__ = _version("neuralfuse")
__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
