"""The probes of a learner, and the same probes where they should find nothing of its own.

A low probe error alone says little (`selectivity`), so each probe is fitted three more times: on a
control learner that never had to learn in context, on an untrained one, and on the learner itself
for targets that are another prompt's.
"""

from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import DistributionConfig, LearnerConfig, TaskConfig
from incontext_linear.learner.base import LayeredLearner
from incontext_linear.learner.registry import build_untrained
from incontext_linear.learner.saved import Learner
from incontext_linear.probing.config import FitConfig, ProbingConfig
from incontext_linear.probing.fitting import STATES_AT_ONCE, ProbeFit, fit_probes
from incontext_linear.probing.readouts import pack_readouts
from incontext_linear.probing.selection import FITTED_ON, Selection, identify
from incontext_linear.probing.states import collect_states, states_size
from incontext_linear.tasks import generator
from incontext_linear.training import Recipe


def control_task(task: TaskConfig) -> TaskConfig:
    """The same prompts with the one fixed w = (1, …, 1): nothing is to be learned in context."""
    fixed = (DistributionConfig(scale=0.0, shift=1.0),)
    return task.model_copy(update={"weights": fixed, "pool_size": None})


def control_recipe(recipe: Recipe, num_steps: int) -> Recipe:
    """How the control of a recipe's learner is trained: on `control_task`, for ``num_steps``."""
    training = recipe.training.model_copy(update={"num_steps": num_steps})
    return Recipe(control_task(recipe.task), recipe.model, training, recipe.seed)


def fit_learner(
    hidden: Float[Tensor, "layer token batch width"],
    learner: Learner,
    selection: Selection,
    probing: ProbingConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Tensor]]:
    """Fit every probe on the learner: errors on the test prompts, attention, linear read-outs.

    Returns:
        `ProbeFit.error_table` and `ProbeFit.attention_table` of the source ``learner``, and the
        read-outs as `pack_readouts` packs them, with what they were fitted on.
    """
    fit = fit_probes(hidden, selection.layers, selection.columns, probing.fit, seed)
    readouts = pack_readouts(fit.linear) | {FITTED_ON: identify(learner, selection)}
    return fit.error_table("learner"), fit.attention_table("learner"), readouts


def fit_controls(
    control: Learner,
    task: TaskConfig,
    model: LearnerConfig,
    selection: Selection,
    probing: ProbingConfig,
    seed: int,
) -> pd.DataFrame:
    """Fit the same probes on a control learner and on an untrained one: their errors.

    Both are fitted in one pass where memory allows.

    Args:
        control: a learner that never had to learn in context.
        task: what the untrained one would be trained on.
        model: its shape.
        selection: what is probed; it depends on that shape, and on no learner's weights.
        probing: how probes are fitted.
        seed: of the untrained learner, the probes and their batches.
    """
    untrained = build_untrained(task, model, generator(seed, "untrained learner"))
    models = [selection.place(control), untrained.to(selection.device)]
    first, second = _fit_both(models, selection, probing.fit, seed)
    tables = first.error_table("control_learner"), second.error_table("untrained_learner")
    return pd.concat(tables, ignore_index=True)


def fit_random_targets(
    hidden: Float[Tensor, "layer token batch width"],
    selection: Selection,
    probing: ProbingConfig,
    seed: int,
) -> pd.DataFrame:
    """Fit the same probes on the learner itself, for targets that are the next prompt's: their
    errors.

    Such targets have the same mean, covariance and tails, and no relation to the hidden states; a
    shuffle would leave some prompts their own.
    """
    columns = [column._replace(values=column.values.roll(1, 0)) for column in selection.columns]
    fit = fit_probes(hidden, selection.layers, columns, probing.fit, seed)
    return fit.error_table("random_targets")


def join_controls(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The errors of all controls in one table."""
    return pd.concat((first, second), ignore_index=True)


def _fit_both(
    models: Sequence[LayeredLearner], selection: Selection, fit: FitConfig, seed: int
) -> tuple[ProbeFit, ProbeFit]:
    """Fit two learners in one pass, or one after the other where the states of one are so many that
    fitting takes several passes anyway.
    """

    def fitted(some: Sequence[LayeredLearner]) -> ProbeFit:
        states = collect_states(some, selection.xs, selection.ys, selection.layers)
        return fit_probes(states, selection.layers * len(some), selection.columns, fit, seed)

    if states_size(models[0], selection) > STATES_AT_ONCE:
        first, second = (fitted([model]) for model in models)
        return first, second
    return fitted(models).halves()
