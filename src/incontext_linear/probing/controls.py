"""The probes of a learner, and the same probes where they should find nothing of its own.

A low probe error alone says little (`selectivity`), so each probe is fitted three more times: on a
control learner that never had to learn in context, on an untrained one, and on the learner itself
for targets that are another prompt's.
"""

from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import DistributionConfig, TaskConfig
from incontext_linear.learner.base import LayeredLearner
from incontext_linear.learner.registry import build_untrained
from incontext_linear.learner.saved import Learner
from incontext_linear.probing.config import FitConfig, ProbingConfig
from incontext_linear.probing.fitting import STATES_AT_ONCE, ProbeFit, fit_probes
from incontext_linear.probing.readouts import pack_readouts
from incontext_linear.probing.selection import FITTED_ON, Selection, identify
from incontext_linear.probing.states import collect_states
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
    hidden: Float[Tensor, "layer token batch width"],
    learner: Learner,
    control: Learner,
    selection: Selection,
    probing: ProbingConfig,
    seed: int,
) -> pd.DataFrame:
    """Fit the same probes where they should find nothing: the controls' errors.

    The control learner and an untrained one are fitted in one pass where memory allows. The
    targets that are another prompt's have the same mean, covariance and tails, and no relation to
    the hidden states.
    """
    rng = generator(seed, "untrained learner")
    untrained = build_untrained(learner.task, learner.config, rng)
    models = [selection.place(control), untrained.to(selection.device)]
    first, second = _fit_both(models, hidden.nbytes, selection, probing.fit, seed)
    shuffled = _fit_to_other_prompts(hidden, selection, probing.fit, seed)
    named = {"control_learner": first, "untrained_learner": second, "random_targets": shuffled}
    return pd.concat([fit.error_table(name) for name, fit in named.items()], ignore_index=True)


def _fit_both(
    models: Sequence[LayeredLearner], size: int, selection: Selection, fit: FitConfig, seed: int
) -> tuple[ProbeFit, ProbeFit]:
    """Fit two learners in one pass, or one after the other where the states of one, ``size`` bytes,
    are so many that fitting takes several passes anyway.
    """

    def fitted(some: Sequence[LayeredLearner]) -> ProbeFit:
        states = collect_states(some, selection.xs, selection.ys, selection.layers)
        return fit_probes(states, selection.layers * len(some), selection.columns, fit, seed)

    if size > STATES_AT_ONCE:
        first, second = (fitted([model]) for model in models)
        return first, second
    return fitted(models).halves()


def _fit_to_other_prompts(hidden: Tensor, selection: Selection, fit: FitConfig, seed: int):
    """Each prompt is given the next one's targets: a shuffle would leave some their own."""
    columns = [column._replace(values=column.values.roll(1, 0)) for column in selection.columns]
    return fit_probes(hidden, selection.layers, columns, fit, seed)
