"""The generators: the six of the paper, its universal input perturbation (UIP), and whatever a user brings."""

from neuralfuse.nets.generators.registry import (
    GENERATORS,
    Factory,
    check_generator,
    code_of,
    encodes_images,
    generator,
    plugins,
    skeleton,
)
from neuralfuse.nets.generators.sizes import Fit, Padding, padding_of

__all__ = [
    "GENERATORS",
    "Factory",
    "Fit",
    "Padding",
    "check_generator",
    "code_of",
    "encodes_images",
    "generator",
    "padding_of",
    "plugins",
    "skeleton",
]
