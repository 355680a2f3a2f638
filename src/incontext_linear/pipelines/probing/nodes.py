"""What the hidden states hold, layer by layer, and whether it is used (paper, section 5, and
beyond): the nodes that are more than a call into `incontext_linear.probing`.
"""

import pandas as pd
from torch import Tensor

from incontext_linear.config import EvaluationConfig, LearnerConfig, TaskConfig
from incontext_linear.learner.registry import build_untrained
from incontext_linear.learner.saved import Learner, check_same_shape
from incontext_linear.probing.calibration import construct_learner
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.controls import control_recipe
from incontext_linear.probing.selection import Selection, select
from incontext_linear.tables import MetricHistories, metric_histories
from incontext_linear.tasks import generator
from incontext_linear.training import Recipe, train
from incontext_linear.training.config import TrainingConfig

PROBE = ["kind", "hidden_units", "target", "examples_seen"]
INTERVENTION = ["method", "target", "examples_seen"]


def select_for_shape(
    task: TaskConfig,
    model: LearnerConfig,
    prompts: dict[str, Tensor],
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> Selection:
    """Choose what is probed: prompts, layers, targets, split. It depends on the learner's shape
    alone, so no learner needs to be there.
    """
    network = build_untrained(task, model, generator(seed, "untrained learner"))
    return select(Learner(network, task, {}, model), prompts, probing, device, seed)


def construct_for_prompts(
    task: TaskConfig, evaluation: EvaluationConfig, probing: ProbingConfig
) -> Learner:
    """Gradient descent by construction, for prompts as long as those that are probed."""
    return construct_learner(evaluation.probed(task), probing)


def train_control_learner(
    task: TaskConfig,
    model: LearnerConfig,
    training: TrainingConfig,
    probing: ProbingConfig,
    seed: int,
    device: str,
    pretrained: Learner | None,
) -> Learner:
    """A learner of the same shape that never had to learn in context; a pretrained one, where the
    catalog has it, is used as it is. It needs no learner, so it can be trained beside that.

    Raises:
        ValueError: if the pretrained control has another shape than the learner.
    """
    if pretrained is None:
        recipe = Recipe(task, model, training, seed)
        return train(control_recipe(recipe, probing.controls.num_steps), device)
    found = pretrained.task, pretrained.config
    check_same_shape("the pretrained control", found, (task, model))
    return pretrained


def report_probing_metrics(scores: pd.DataFrame) -> MetricHistories:
    """Probe R² as metric histories whose step is the layer."""
    return metric_histories(scores, "probing/r_squared", PROBE, "layer", "r_squared")


def report_selectivity_metrics(selectivity: pd.DataFrame) -> MetricHistories:
    """Selectivity as metric histories whose step is the layer."""
    return metric_histories(selectivity, "probing/selectivity", PROBE, "layer", "selectivity")


def report_causality_metrics(causality: pd.DataFrame) -> MetricHistories:
    """The fraction of the way to the donor's prediction, with the layer as step."""
    return metric_histories(causality, "causality/moved", INTERVENTION, "layer", "fraction")


def report_progress_metrics(nearest: pd.DataFrame) -> MetricHistories:
    """The nearest number of steps of each algorithm, with the layer as step."""
    keys = ["algorithm", "examples_seen"]
    return metric_histories(nearest, "layers/nearest_steps", keys, "layer", "nearest_steps")


def report_calibration_metrics(scores: pd.DataFrame, causality: pd.DataFrame) -> MetricHistories:
    """R² of the constructed network's probes and what its interventions move, with the layer as
    step.
    """
    probes = ["target", "examples_seen"]
    return metric_histories(
        scores, "calibration/r_squared", probes, "layer", "r_squared"
    ) | metric_histories(causality, "calibration/moved", INTERVENTION, "layer", "fraction")
