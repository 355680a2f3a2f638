"""The network under study: its architectures, and how a trained one is kept on disk."""

from incontext_linear.learner.registry import build_learner
from incontext_linear.learner.saved import Learner, check_same_shape, load_learner, save_learner
from incontext_linear.learner.transformer import Transformer

__all__ = [
    "Learner",
    "Transformer",
    "build_learner",
    "check_same_shape",
    "load_learner",
    "save_learner",
]
