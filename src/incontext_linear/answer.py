"""The whole answer on one network in one call: `compare(network, task)`.

What the pipelines behavioral_comparison and identification do, without a project around it: a
table of distances to the textbook algorithms, the figure of it, and the verdict in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from incontext_linear.comparison.config import ComparisonConfig
from incontext_linear.comparison.curves import (
    describe_nearest,
    estimate_baseline_weights,
    estimate_learner_weights,
    ilwd_curves,
    predict_with_baselines,
    predict_with_learner,
    spd_curves,
)
from incontext_linear.comparison.identification import (
    Identification,
    IdentificationConfig,
    identify,
)
from incontext_linear.comparison.verdict import Verdict
from incontext_linear.config import BootstrapConfig, CustomConfig, LearnerConfig, TaskConfig
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.sources import as_learner
from incontext_linear.predictors import Baselines
from incontext_linear.tasks import draw_mixture, draw_prompts, generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES: dict[str, dict[str, Any]] = {
    "ols": {"type": "OrdinaryLeastSquares"},
    "ridge_0.1": {"type": "Ridge", "penalty": 0.1},
    "ridge_1": {"type": "Ridge", "penalty": 1.0},
    "gd_1": {"type": "GradientDescent", "step_size": 0.02, "num_steps": 1},
    "gd_10": {"type": "GradientDescent", "step_size": 0.02, "num_steps": 10},
    "sgd": {"type": "OnePassSGD", "step_size": 0.05},
    "newton_5": {"type": "IterativeNewton", "num_steps": 5},
    "knn_3": {"type": "NearestNeighbors", "num_neighbors": 3, "weights": "uniform"},
    "averaging": {"type": "Averaging"},
    "zero": {"type": "FirstExamples", "num_examples": 0},
}
"""What a network is compared with where nothing else is asked for."""

EXPLAINED = 0.5
"""A candidate that explains less of the network's predictions at some k is not near it, whatever
the evidence against it."""


@dataclass(frozen=True)
class Answer:
    """What was found out about a network.

    Attributes:
        table: SPD to every algorithm after every number of examples, with intervals over prompts.
        weights: the same of the implicit weights (ILWD).
        verdict: which algorithms it is nearest to, and which survives all evidence, in words.
        identification: the tables behind the verdict.
    """

    table: pd.DataFrame = field(repr=False)
    weights: pd.DataFrame = field(repr=False)
    verdict: str
    identification: Identification = field(repr=False)
    _run: tuple[TaskConfig, LearnerConfig, int] = field(repr=False)

    @property
    def figure(self) -> "Figure":
        """SPD and ILWD to every algorithm; needs Matplotlib."""
        from incontext_linear.figures.behavioral_comparison import plot_divergences

        return plot_divergences(self.table, self.weights, *self._run)


def compare(
    network: nn.Module | Learner,
    task: TaskConfig | Mapping[str, Any],
    *,
    baselines: Mapping[str, dict[str, Any]] | None = None,
    identification: IdentificationConfig | None = None,
    num_prompts: int = 512,
    num_weight_prompts: int = 32,
    seed: int = 0,
    device: str = "cpu",
) -> Answer:
    """Which algorithm does a network run in context?

    Args:
        network: ``forward(xs (B, n, d), ys (B, n)) -> predictions (B, n)``, where ``[:, k]`` uses
            ``xs[:, :k+1]`` and ``ys[:, :k]`` only; in float32.
        task: the prompts that it was trained on, as a `TaskConfig` or its fields.
        baselines: name → type and arguments, as in the parameters; None: `BASELINES`.
        identification: settings of the verdict; None: those that the pipeline uses for controls,
            which are short.
        num_prompts: compared on.
        num_weight_prompts: of these, those that implicit weights are estimated on.
        seed: of all prompts and resamples.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: if the network cannot be asked, or sees what it must predict.
    """
    given = task if isinstance(task, TaskConfig) else TaskConfig.model_validate(dict(task))
    learner = network if isinstance(network, Learner) else _learner(network, given)
    bootstrap = BootstrapConfig()
    asked = ComparisonConfig(
        num_queries=2 * given.dim + 8, num_weight_prompts=num_weight_prompts, bootstrap=bootstrap
    )
    algorithms = Baselines.model_validate(dict(baselines or BASELINES))
    prompts = draw_prompts(given, num_prompts, seed, stream="evaluation")._asdict()
    shape = (min(num_weight_prompts, num_prompts), asked.num_queries, given.dim)
    queries = {"queries": draw_mixture(given.inputs, shape, generator(seed, "queries"))}
    spd = spd_curves(
        predict_with_learner(learner, prompts, device),
        predict_with_baselines(prompts, algorithms, given),
        prompts,
        asked,
        seed,
    )
    ilwd = ilwd_curves(
        estimate_learner_weights(learner, prompts, queries, device),
        estimate_baseline_weights(prompts, queries, algorithms, given),
        algorithms,
        prompts,
        asked,
        seed,
    )
    settings = identification or IdentificationConfig().for_controls()
    model = on_device(learner.model, torch.device(device))
    found = identify(model, given, settings, seed, device)
    verdict = f"{describe_nearest(spd, prompts)}.\n{tell(found.verdict)}\n"
    return Answer(spd, ilwd, verdict, found, (given, learner.config, seed))


def tell(verdict: Verdict) -> str:
    """A verdict in words, but where what survives is not near the network: then that it is near
    none.
    """
    if verdict.named is None or verdict.explained_at_home >= EXPLAINED:
        return verdict.words()
    share = max(0.0, 100 * verdict.explained_at_home)
    return (
        f"Near none of the candidates: {verdict.members[verdict.named]} is not ruled out, and "
        f"explains {share:.2g} % of the variance of its predictions at the k where it explains "
        "least."
    )


def _learner(network: nn.Module, task: TaskConfig) -> Learner:
    config = getattr(network, "config", None)
    if not isinstance(config, LearnerConfig):
        kind = type(network)
        config = CustomConfig(type=f"{kind.__module__}.{kind.__qualname__}")
    return as_learner(network, task, config)
