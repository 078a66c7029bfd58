"""Training: quantization-aware base models, generator pretraining, NeuralFuse by EOPM, and their common loop."""

from neuralfuse.train.classes import pretrain
from neuralfuse.train.eopm import generator_scheme, train_fuse, training_images
from neuralfuse.train.gradient import Pass, eopm_backward, passes
from neuralfuse.train.listeners import Listener, ProgressBar, TensorBoard
from neuralfuse.train.loop import State
from neuralfuse.train.qat import error_config, train_base
from neuralfuse.train.ranks import ALONE, Ranks

__all__ = [
    "ALONE",
    "Listener",
    "Pass",
    "ProgressBar",
    "Ranks",
    "State",
    "TensorBoard",
    "eopm_backward",
    "error_config",
    "generator_scheme",
    "passes",
    "pretrain",
    "train_base",
    "train_fuse",
    "training_images",
]
