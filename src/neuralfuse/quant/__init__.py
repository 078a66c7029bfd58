"""Float weights <-> stored integer codes: the schemes, and fake quantization for training."""

from neuralfuse.quant.adapters import DEFAULT_ADAPTERS, Adapter, InnerTensors
from neuralfuse.quant.fake import fake_quantize, quantized_call, quantized_parameters, snap_
from neuralfuse.quant.floats import FloatWords
from neuralfuse.quant.layers import DEFAULT_LAYERS, Layers, StoredTensor, has_weights
from neuralfuse.quant.scheme import Codes, Scheme

__all__ = [
    "DEFAULT_ADAPTERS",
    "DEFAULT_LAYERS",
    "Adapter",
    "Codes",
    "FloatWords",
    "InnerTensors",
    "Layers",
    "Scheme",
    "StoredTensor",
    "fake_quantize",
    "has_weights",
    "quantized_call",
    "quantized_parameters",
    "snap_",
]
