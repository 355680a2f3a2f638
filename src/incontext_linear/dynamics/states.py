"""What the layers hold along training: probes of Xᵀy and the least-squares weights, and what is
predicted from each layer.

The probes are those of `incontext_linear.probing`, linear ones, fitted anew at every step on the
same prompts; step 0 is the untrained learner, their control.
"""

import numpy as np
import pandas as pd
from torch import Tensor

from incontext_linear.comparison.families import DEFAULT_FAMILIES, Family
from incontext_linear.comparison.fitting import Calibration, fit_family
from incontext_linear.comparison.spectra import Prefixes
from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.dynamics.config import DynamicsConfig
from incontext_linear.dynamics.trajectories import Trajectories
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.fitting import fit_probes
from incontext_linear.probing.layerwise import read_predictions
from incontext_linear.probing.selection import Selection, select
from incontext_linear.probing.states import collect_hidden_states
from incontext_linear.statistics import crossed_means, seeds_interval
from incontext_linear.tasks import Prompts


def measure_states(
    trajectories: Trajectories,
    prompts: Prompts,
    dynamics: DynamicsConfig,
    seed: int,
    device: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probe errors, and what is read from each layer, at every step of every training.

    Returns:
        Probes, one row a test prompt averaged away: ``seed``, ``step``, ``layer``, ``target``,
        ``error`` (share of the target's variance), read after all but one example. And read-outs:
        ``seed``, ``step``, ``layer``, ``risk`` and ``spd_to_ols`` (shares of Var(y), means over
        k ≥ 1 of prompts that nothing was fitted on), ``penalty`` of the nearest ridge and ``spd``
        to it.
    """
    probing = ProbingConfig(targets=dynamics.targets, num_prompts=len(prompts.xs), fit=dynamics.fit)
    probes, readouts, selection = [], [], None
    for one in trajectories.seeds:
        for step, learner in trajectories.learners(one):
            if selection is None:
                selection = select(learner, prompts._asdict(), probing, device, seed)
            hidden = collect_hidden_states(learner, selection)
            at = {"seed": one, "step": step}
            probes.append(_probe(hidden, selection, probing, seed).assign(**at))
            readouts.append(_read(hidden, selection, learner.task).assign(**at))
    return pd.concat(probes, ignore_index=True), pd.concat(readouts, ignore_index=True)


def _probe(hidden: Tensor, selection: Selection, probing: ProbingConfig, seed: int) -> pd.DataFrame:
    fit = fit_probes(hidden, selection.layers, selection.columns, probing.fit, seed)
    errors = fit.squared_error.mean((0, 2, 4))  # (L, C): over refits, read-outs and prompts
    rows = [
        (layer, target, errors[row, column].item())
        for row, layer in enumerate(fit.layers)
        for column, (target, _) in enumerate(fit.columns)
    ]
    return pd.DataFrame(rows, columns=["layer", "target", "error"])


def _read(hidden: Tensor, selection: Selection, task: TaskConfig) -> pd.DataFrame:
    """The linear read-out of the label, layer by layer; half of the test prompts find the nearest
    ridge, the other half scores.
    """
    read = read_predictions(hidden, selection.ys, selection.split)[:, :, 1:].double().cpu()
    test = selection.split.test.to(selection.device)
    xs, ys = (part[test].double().cpu() for part in (selection.xs, selection.ys))
    half, seen = len(xs) // 2, tuple(range(1, xs.shape[1]))
    scale = ys.square().mean()
    family = Family("ridge", "ridge", DEFAULT_FAMILIES["ridge"], task)
    fit, score = Prefixes(xs[:half], ys[:half], seen), Prefixes(xs[half:], ys[half:], seen)
    ols = OrdinaryLeastSquares()(score.xs, score.ys)[:, 1:]
    rows = []
    for row, layer in enumerate(selection.layers):
        calibration = Calibration(fit, read[row, :half], scale.reshape(1, 1))
        member = fit_family(family, calibration).member
        answers = {"risk": score.ys[:, 1:], "spd_to_ols": ols, "spd": member.predict(score)}
        missed = {
            name: ((read[row, half:] - answer).square().mean() / scale).item()
            for name, answer in answers.items()
        }
        rows.append({"layer": layer, **missed, "penalty": float(member.numbers["penalty"])})
    return pd.DataFrame(rows)


def over_seeds(
    table: pd.DataFrame, keys: list[str], value: str, bootstrap: BootstrapConfig, seed: int
) -> pd.DataFrame:
    """Mean of a positive value over seeds, with an interval over seeds.

    Args:
        table: one row a seed and combination of the keys.
        keys: what is kept apart.
        value: the column that is averaged.
        bootstrap: level and number of resamples.
        seed: of the resamples.

    Returns:
        The keys, ``mean``, ``low``, ``high`` and ``seeds``.
    """
    wide = table.pivot_table(index=keys, columns="seed", values=value, sort=False)
    values = wide.to_numpy().T[:, None]  # (S, 1, columns): one "prompt"
    mean = values.mean((0, 1))
    drawn = crossed_means(values, bootstrap.num_resamples, seed)
    low, high = seeds_interval(drawn, mean, len(values), bootstrap.confidence, log=True)
    return wide.index.to_frame(index=False).assign(
        mean=mean, low=low, high=high, seeds=np.int64(len(values))
    )
