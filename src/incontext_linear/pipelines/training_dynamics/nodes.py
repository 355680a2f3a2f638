"""Follow several trainings through their snapshots: the nodes that are more than one call into
`incontext_linear.dynamics`.
"""

import pandas as pd
from torch import Tensor

from incontext_linear.config import EvaluationConfig, LearnerConfig, TaskConfig
from incontext_linear.dynamics import behaviour, fitted, heads, passages, states, trajectories
from incontext_linear.dynamics.behaviour import LABELS
from incontext_linear.dynamics.config import DynamicsConfig
from incontext_linear.dynamics.trajectories import HOME, Trajectories
from incontext_linear.figures import dynamics as figures
from incontext_linear.figures.style import Figure
from incontext_linear.predictors import Baselines
from incontext_linear.progress import training_progress
from incontext_linear.tables import MetricHistories, metric_histories, metric_history
from incontext_linear.tasks import Prompts
from incontext_linear.training import CheckpointStore, Recipe, SnapshotStore, TrainingConfig

PromptSets = dict[str, Prompts]


def train_seeds(
    task: TaskConfig,
    model: LearnerConfig,
    training: TrainingConfig,
    dynamics: DynamicsConfig,
    snapshots: SnapshotStore,
    checkpoints: CheckpointStore,
    device: str,
) -> Trajectories:
    """Train every seed and keep its snapshots; those that are there already are not trained."""
    recipe = Recipe(task, model, training, dynamics.seeds[0])
    with training_progress(training.num_steps) as report:
        return trajectories.train_trajectories(
            recipe, dynamics.seeds, dynamics.num_snapshots, snapshots, device, checkpoints, report
        )


def draw_prompts(
    task: TaskConfig, evaluation: EvaluationConfig, dynamics: DynamicsConfig, seed: int
) -> PromptSets:
    """Prompts that fit, and behind them those that score: the same for all seeds and steps."""
    count = dynamics.num_fit_prompts + dynamics.num_prompts
    return trajectories.draw_prompt_sets(task, evaluation, count, seed)


def predict(trained: Trajectories, prompts: PromptSets, device: str) -> dict[str, Tensor]:
    """Every learner's predictions on each set of prompts."""
    return {
        name: trajectories.predict_along_training(trained, own.xs, own.ys, device)
        for name, own in prompts.items()
    }


def measure_distances(
    trained: Trajectories,
    prompts: PromptSets,
    predictions: dict[str, Tensor],
    task: TaskConfig,
    baselines: Baselines,
    dynamics: DynamicsConfig,
    seed: int,
) -> tuple[pd.DataFrame, ...]:
    """SPD over seeds and of each, nearest algorithms, visits and passages, on every set of prompts;
    what is chosen is chosen on the prompts that fit.
    """
    parts: list[list[pd.DataFrame]] = [[], [], [], [], []]
    for name, own in prompts.items():
        answers = behaviour.answer_prompts(own, baselines, task)
        scale = own.ys.double().square().mean().item()
        count, tables = dynamics.num_fit_prompts, []
        for part in (slice(None, count), slice(count, None)):
            answered = {key: values[part] for key, values in answers.items()}
            asked = predictions[name][:, :, part]
            places = scale, trained.seeds, trained.steps
            tables.append(behaviour.spd_tables(asked, answered, *places, dynamics.bootstrap, seed))
        (_, others), (pooled, single) = tables
        algorithms = [key for key in answers if key != LABELS]
        found = (
            pooled,
            single,
            behaviour.nearest_along_training(single, others),
            behaviour.visits(single, others, algorithms),
            passages.passages_of(single, algorithms, dynamics.bootstrap.confidence),
        )
        for rows, table in zip(parts, found, strict=True):
            rows.append(table.assign(prompts_of=name))
    return tuple(pd.concat(rows, ignore_index=True) for rows in parts)


def measure_linearity(
    trained: Trajectories,
    prompts: PromptSets,
    task: TaskConfig,
    dynamics: DynamicsConfig,
    seed: int,
    device: str,
    num_prompts: int = 64,
) -> pd.DataFrame:
    """R² of the implicit weights along training, on a few of the prompts that score."""
    part = slice(dynamics.num_fit_prompts, dynamics.num_fit_prompts + num_prompts)
    few = Prompts(*(tensor[part] for tensor in prompts[HOME]))
    return behaviour.linearity_table(trained, few, task, dynamics.bootstrap, seed, device)


def fit_families(
    trained: Trajectories,
    prompts: PromptSets,
    predictions: dict[str, Tensor],
    task: TaskConfig,
    dynamics: DynamicsConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Numbers of every family, families against ridge, and the same for planted learners."""
    split = fitted.FitPrompts.split(prompts[HOME], dynamics.num_fit_prompts)
    families = fitted.training_families(task, dynamics.families)
    fits = fitted.fit_along_training(predictions[HOME], split, families)
    settings = trained.steps, dynamics.bootstrap, seed
    return (
        fitted.fit_table(fits, trained.seeds, trained.steps),
        fitted.comparison_table(fits, *settings),
        fitted.power_table(
            fits, predictions[HOME], split, [fitted.REFERENCE, "gradient_flow"], *settings
        ),
    )


def measure_heads(
    trained: Trajectories,
    prompts: PromptSets,
    dynamics: DynamicsConfig,
    device: str,
    num_prompts: int = 128,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The strongest head of each kind at every step, and from when on it looks back."""
    xs, ys = (tensor[:num_prompts] for tensor in prompts[HOME][:2])
    strongest = heads.strongest_heads(heads.head_table(trained, xs, ys, device))
    return strongest, heads.appearances(strongest, dynamics.looking_back)


def measure_states(
    trained: Trajectories, prompts: PromptSets, dynamics: DynamicsConfig, seed: int, device: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probe errors and read-outs of every layer at every step, of each seed."""
    few = Prompts(*(tensor[: dynamics.num_probe_prompts] for tensor in prompts[HOME]))
    return states.measure_states(trained, few, dynamics, seed, device)


def report_dynamics_metrics(
    spd: pd.DataFrame, passed: pd.DataFrame, appeared: pd.DataFrame
) -> MetricHistories:
    """SPD over seeds against the step, the passages' places and the heads' appearance."""
    keys = ["prompts_of", "predictor"]
    means = spd.groupby([*keys, "step"], sort=False)[["mean"]].mean().reset_index()
    histories = metric_histories(means, "dynamics.spd", keys, "step", "mean")
    own = passed[passed["prompts_of"] == HOME]
    for quantity, half in zip(own["quantity"], own["half"], strict=True):
        histories[f"dynamics.half.{quantity}"] = metric_history([0], [half])
    for kind, rows in appeared.groupby("kind", sort=False):
        histories[f"dynamics.appears.{kind}"] = metric_history(
            rows["seed"].tolist(), rows["step"].tolist()
        )
    return {name: points for name, points in histories.items() if points}


def _describe(task: TaskConfig, model: LearnerConfig, dynamics: DynamicsConfig) -> str:
    pool = f", pool of {task.pool_size}" if task.pool_size is not None else ""
    noise = f", noise {task.noise_std:g}" if task.noise_std else ""
    return (
        f"d = {task.dim}, {task.num_examples} examples{noise}{pool} · {model.words} · "
        f"{len(dynamics.seeds)} seeds"
    )


def draw_distances(
    spd: pd.DataFrame, task: TaskConfig, model: LearnerConfig, dynamics: DynamicsConfig
) -> Figure:
    """Draw the distance to every algorithm against the training step."""
    return figures.plot_distances(spd, _describe(task, model, dynamics))


def draw_nearest(
    nearest: pd.DataFrame, task: TaskConfig, model: LearnerConfig, dynamics: DynamicsConfig
) -> Figure:
    """Draw the nearest algorithm over training step and number of examples."""
    return figures.plot_nearest_over_training(nearest, _describe(task, model, dynamics))


def draw_plane(
    single: pd.DataFrame, task: TaskConfig, model: LearnerConfig, dynamics: DynamicsConfig
) -> Figure:
    """Draw each seed's way through the plane of its distances to two algorithms."""
    known = list(dict.fromkeys(single["predictor"]))
    usual = (behaviour.DISCRETE, "bayes") if task.pool_size is not None else ("zero", "ols")
    chosen = dynamics.plane or usual
    plane = chosen if set(chosen) <= set(known) else (known[0], known[-2])
    return figures.plot_plane(single, plane, _describe(task, model, dynamics))


def draw_families(
    families: pd.DataFrame,
    comparison: pd.DataFrame,
    power: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    dynamics: DynamicsConfig,
) -> Figure:
    """Draw the fitted numbers along training, and every family against ridge."""
    return figures.plot_families(families, comparison, power, _describe(task, model, dynamics))


def draw_heads(
    strongest: pd.DataFrame,
    appeared: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    dynamics: DynamicsConfig,
) -> Figure:
    """Draw the strongest head of each kind along training."""
    return figures.plot_heads(strongest, appeared, _describe(task, model, dynamics))


def draw_states(
    probes: pd.DataFrame,
    readouts: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    dynamics: DynamicsConfig,
) -> Figure:
    """Draw what probes and read-outs find in each layer along training."""
    return figures.plot_states(probes, readouts, _describe(task, model, dynamics))
