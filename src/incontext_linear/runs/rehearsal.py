"""What a run would fail at in the middle, tried on a few prompts before anything is written.

Parameters alone cannot say whether a predictor of someone's own gives predictions of the right
shape, or whether a probe's target is the same for every prompt: both are asked here, once.
"""

from collections.abc import Iterable

import torch

from incontext_linear.config import TaskConfig, resolve_device
from incontext_linear.parameters import Parameters
from incontext_linear.predictors import Predictor
from incontext_linear.probing.selection import lengths_seen
from incontext_linear.probing.targets import build_targets, target_values
from incontext_linear.runs.sizes import check_sizes
from incontext_linear.tasks import Prompts, draw_prompts

NUM_PROMPTS = 64


def rehearse(parameters: Parameters, nodes: Iterable[str], datasets: Iterable[str]) -> None:
    """Ask all questions that a run's own answers would come too late for.

    Args:
        parameters: of the run.
        nodes: names of its nodes.
        datasets: names of what it reads and makes.

    Raises:
        ValueError: naming the parameter, what was given and what is allowed.
    """
    made = set(datasets)
    if "params:device" in made:
        resolve_device(parameters.device)
    check_sizes(parameters, nodes)
    if "layer_filters" in made:
        check_filters(parameters)
    evaluation, task = parameters.evaluation, parameters.task
    if made & {"baseline_predictions", "baseline_weights"}:
        prompts = _draw(evaluation.over(task), parameters.seed)
        for name, predictor in parameters.baselines.build(task).items():
            check_predictions(f"baselines.{name}", predictor, prompts)
    if "probed" in made:
        check_targets(parameters, _draw(evaluation.probed(task), parameters.seed))


def check_filters(parameters: Parameters) -> None:
    """Compare the settings of the layers' filters with the task.

    Raises:
        ValueError: naming the first that does not fit.
    """
    filters, dim = parameters.identification.filters, parameters.task.dim
    name = "identification.filters"
    if filters.num_queries <= dim + 1:
        raise ValueError(
            f"{name}.num_queries: {filters.num_queries} queries cannot determine affine maps; "
            f"allowed: more than task.dim + 1, which is {dim + 1}"
        )
    try:
        filters.examples_seen(parameters.task)
    except ValueError as error:
        raise ValueError(f"{name}.context_length: {error}") from error


def _draw(task: TaskConfig, seed: int) -> Prompts:
    return draw_prompts(task, NUM_PROMPTS, seed, stream="rehearsal")


def check_predictions(name: str, predictor: Predictor, prompts: Prompts) -> None:
    """Ask a predictor for its predictions.

    Raises:
        ValueError: if they are no float64 tensor of the labels' shape.
    """
    xs, ys = prompts.xs[:4].double(), prompts.ys[:4].double()
    try:
        found = predictor(xs, ys)
    except Exception as error:  # whatever someone's own code raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: asked for predictions it raised {reason}") from error
    if not isinstance(found, torch.Tensor) or found.shape != ys.shape or found.dtype != ys.dtype:
        given = (
            f"a {str(found.dtype).removeprefix('torch.')} tensor of shape {tuple(found.shape)}"
            if isinstance(found, torch.Tensor)
            else f"a {type(found).__name__}"
        )
        raise ValueError(
            f"{name}: gave {given} for xs {tuple(xs.shape)} and ys {tuple(ys.shape)} of float64; "
            f"allowed: predictions of the labels' shape {tuple(ys.shape)} and dtype"
        )


def check_targets(parameters: Parameters, prompts: Prompts) -> None:
    """Compute every target that is probed.

    Raises:
        ValueError: as `target_values`.
    """
    probing = parameters.probing
    targets = build_targets(probing.targets, probing.ridge_penalty)
    for seen in lengths_seen(probing.context_lengths, prompts.ys.shape[1]):
        for name, target in targets.items():
            try:
                target_values(name, target, prompts.xs[:, :seen], prompts.ys[:, :seen])
            except Exception as error:  # whatever someone's own code raises
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise ValueError(f"probing.targets: {reason} (of {seen} examples)") from error
