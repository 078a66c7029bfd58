"""Training: quantization-aware base models, NeuralFuse by EOPM, and the one loop that both share."""

from neuralfuse.train.eopm import train_fuse
from neuralfuse.train.gradient import Pass, eopm_backward, passes
from neuralfuse.train.listeners import Listener, ProgressBar, TensorBoard
from neuralfuse.train.loop import State
from neuralfuse.train.qat import train_base
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
    "passes",
    "train_base",
    "train_fuse",
]
