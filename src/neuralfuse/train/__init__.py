"""Training: quantization-aware base models, NeuralFuse by EOPM, and the one loop that both share."""

from neuralfuse.train.eopm import EopmConfig, train_fuse
from neuralfuse.train.listeners import Listener, ProgressBar, TensorBoard
from neuralfuse.train.loop import LoopConfig
from neuralfuse.train.qat import BASE_RECIPES, QatConfig, train_base

__all__ = [
    "BASE_RECIPES",
    "EopmConfig",
    "Listener",
    "LoopConfig",
    "ProgressBar",
    "QatConfig",
    "TensorBoard",
    "train_base",
    "train_fuse",
]
