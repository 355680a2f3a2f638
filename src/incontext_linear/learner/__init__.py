"""The network under study: the paper's transformer, and how a trained one is kept on disk."""

from incontext_linear.learner.saved import Learner, check_same_shape, load_learner, save_learner
from incontext_linear.learner.transformer import Transformer

__all__ = ["Learner", "Transformer", "check_same_shape", "load_learner", "save_learner"]
