"""The same measurements along training: which algorithm a learner is nearest to, step by step.

trajectories  several trainings with their snapshots, and what they predict
behaviour     distances to every algorithm at every step and number of examples
fitted        families with free numbers at every step, and what could be told apart
passages      when and how suddenly a value changes, and whether all seeds agree
heads         when heads that look back at the context appear
states        probes and read-outs of every layer at every step
"""

from incontext_linear.dynamics.config import DynamicsConfig
from incontext_linear.dynamics.trajectories import (
    Trajectories,
    draw_prompt_sets,
    predict_along_training,
    train_trajectories,
)

__all__ = [
    "DynamicsConfig",
    "Trajectories",
    "draw_prompt_sets",
    "predict_along_training",
    "train_trajectories",
]
