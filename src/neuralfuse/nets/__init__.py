"""The networks: base models of the paper and small ones for CPUs, and the six generators with the UIP baseline."""

from neuralfuse.nets.base import BASE_MODELS, BaseModel, base_model, base_spec, parameter_count
from neuralfuse.nets.catalogue import catalogue
from neuralfuse.nets.deployed import DeployedBase
from neuralfuse.nets.generators import (
    GENERATORS,
    check_generator,
    code_of,
    encodes_images,
    generator,
    plugins,
    skeleton,
)
from neuralfuse.nets.store import load_base, save_base

__all__ = [
    "BASE_MODELS",
    "GENERATORS",
    "BaseModel",
    "DeployedBase",
    "base_model",
    "base_spec",
    "catalogue",
    "check_generator",
    "code_of",
    "encodes_images",
    "generator",
    "load_base",
    "parameter_count",
    "plugins",
    "save_base",
    "skeleton",
]
