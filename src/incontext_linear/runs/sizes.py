"""How much memory a run needs, before it runs: what no machine like this one can do is refused.

The estimates count the large arrays that a step holds at once and nothing else, so they are too
small, never too large: what is refused here could not have ended.
"""

import os
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from incontext_linear.config import (
    CustomConfig,
    LearnerConfig,
    ModelConfig,
    TaskConfig,
    resolve_device,
)
from incontext_linear.learner.registry import build_learner
from incontext_linear.parameters import Parameters
from incontext_linear.training.config import TrainingConfig

FLOAT = 4
DOUBLE = 8
_CONTROL_GROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class SizeError(ValueError):
    """A run needs more memory than the machine has."""


@dataclass(frozen=True)
class Need:
    """Memory that a step holds at once.

    Attributes:
        what: it is for, in words.
        fields: dotted names of the parameters that it follows from.
        num_bytes: at least so many.
        on_device: whether it lies on the GPU, where the run has one.
    """

    what: str
    fields: tuple[str, ...]
    num_bytes: int
    on_device: bool = False


def num_parameters(task: TaskConfig, model: LearnerConfig) -> int:
    """Weights of a learner, without memory for them; of a network of one's own none are counted."""
    if isinstance(model, CustomConfig):
        return 0
    if not _is_transformer(model):
        with torch.device("meta"):
            network = build_learner(task.dim, task.num_examples, model)
        return sum(weights.numel() for weights in network.parameters())
    width, units = model.width, model.mlp_units
    block = 4 * width * width + 2 * width * units + 9 * width + units
    ends = (task.dim + 2) * width + task.num_tokens * width + 3 * width + 1
    return model.num_layers * block + ends


def _is_transformer(model: LearnerConfig) -> TypeGuard[ModelConfig]:
    """Whether it is of the class itself: those derived from it share weights, or have others."""
    return type(model) is ModelConfig


def _width(model: LearnerConfig) -> int:
    """Of the residual stream; 0 where it is not known before the learner is built."""
    return int(getattr(model, "width", 0))


def _activations(task: TaskConfig, model: LearnerConfig) -> int:
    """Numbers that the backward pass needs of a prompt; of other architectures none are counted."""
    if not _is_transformer(model):
        return 0
    return task.num_tokens * model.num_layers * (8 * model.width + 2 * model.mlp_units)


def training_need(parameters: Parameters) -> Need:
    """Weights, gradients and moments; what the backward pass needs; the prompts."""
    task, model, training = parameters.task, parameters.model, parameters.training
    count = num_parameters(task, model)
    moments = 1 if training.optimizer == "muon" else 2
    batch = -(-training.batch_size // int(os.environ.get("WORLD_SIZE", "1")))  # set by torchrun
    number = 2 if _low_precision(training, parameters.device) else FLOAT
    kept = batch * _activations(task, model)
    prompts = FLOAT * batch * task.num_examples * (task.dim + 1)
    return Need(
        f"training a learner of {count:,} weights",
        (
            "model.num_layers",
            "model.width",
            "model.mlp_width",
            "training.batch_size",
            "task.dim",
            "task.num_examples",
        ),
        FLOAT * (2 + moments) * count + number * kept // 2 + prompts,
        on_device=True,
    )


def _low_precision(training: TrainingConfig, device: str) -> bool:
    try:
        return training.low_precision(resolve_device(device).type == "cuda")
    except ValueError:  # no GPU, which is said elsewhere
        return False


def _prompts(parameters: Parameters, count: int, name: str) -> Need:
    task = parameters.evaluation.probed(parameters.task)
    return Need(
        f"{count:,} prompts",
        (name, "task.dim", "task.num_examples"),
        FLOAT * count * task.num_examples * (task.dim + 1),
    )


def _evaluation_prompts(parameters: Parameters) -> Need:
    count = parameters.data_generation.num_evaluation_prompts
    return _prompts(parameters, count, "data_generation.num_evaluation_prompts")


def _probing_prompts(parameters: Parameters) -> Need:
    count = parameters.data_generation.num_probing_prompts
    return _prompts(parameters, count, "data_generation.num_probing_prompts")


def _queries(parameters: Parameters) -> Need:
    task, comparison = parameters.evaluation.over(parameters.task), parameters.comparison
    each = comparison.num_queries * task.dim + task.num_examples * comparison.num_queries
    return Need(
        "the queries of the implicit weights",
        ("comparison.num_weight_prompts", "comparison.num_queries", "task.dim"),
        DOUBLE * comparison.num_weight_prompts * each,
    )


def _pool(parameters: Parameters) -> Need:
    task = parameters.task
    return Need(
        "the pool of weight vectors",
        ("task.pool_size", "task.dim"),
        FLOAT * (task.pool_size or 0) * task.dim,
    )


def _predictions(parameters: Parameters) -> Need:
    count = parameters.data_generation.num_evaluation_prompts
    predictors = len(parameters.baselines.active) + 1
    return Need(
        f"the predictions of {predictors} predictors",
        ("data_generation.num_evaluation_prompts", "task.num_examples"),
        DOUBLE * count * parameters.evaluation.over(parameters.task).num_examples * predictors,
    )


def _resamples(name: str) -> Callable[[Parameters], Need]:
    def need(parameters: Parameters) -> Need:
        bootstrap = getattr(parameters, name).bootstrap
        columns = min(64, parameters.task.num_examples)
        return Need(
            "the bootstrap",
            (f"{name}.bootstrap.num_resamples",),
            3 * DOUBLE * bootstrap.num_resamples * columns,
        )

    return need


def _hidden_states(parameters: Parameters) -> Need:
    probing, model = parameters.probing, parameters.model
    task = parameters.evaluation.probed(parameters.task)
    count = probing.num_prompts or parameters.data_generation.num_probing_prompts
    layers = len(probing.layers or range((model.depth or 0) + 1))
    return Need(
        f"the hidden states of {count:,} prompts",
        (
            "probing.num_prompts",
            "data_generation.num_probing_prompts",
            "probing.layers",
            "model.num_layers",
            "model.width",
            "task.num_examples",
        ),
        2 * layers * task.num_tokens * count * _width(model),  # in half precision
        on_device=True,
    )


def _probes(parameters: Parameters) -> Need:
    probing, task, model = parameters.probing, parameters.task, parameters.model
    layers = len(probing.layers or range((model.depth or 0) + 1))
    columns = len(probing.targets) * len(probing.context_lengths)
    size = task.dim * (task.dim + 1) // 2 if "gram" in probing.targets else task.dim
    width = _width(model)
    each = width * size + sum(u * (width + size) for u in probing.fit.hidden_units)
    count = probing.num_prompts or parameters.data_generation.num_probing_prompts
    return Need(
        "the probes and their targets",
        ("probing.fit.hidden_units", "probing.targets", "model.width", "task.dim"),
        FLOAT * (4 * layers * columns * each + 2 * columns * count * size),
        on_device=True,
    )


def _calibration(parameters: Parameters) -> Need:
    probing, task = parameters.probing, parameters.evaluation.probed(parameters.task)
    rows = task.dim * (task.dim + 3)
    tokens = task.num_tokens * min(
        probing.calibration.num_prompts, parameters.data_generation.num_probing_prompts
    )
    return Need(
        f"the constructed network of {rows:,} hidden rows and its states",
        (
            "task.dim",
            "task.num_examples",
            "probing.calibration.num_steps",
            "probing.calibration.num_prompts",
        ),
        FLOAT * rows * (40 * rows + (probing.calibration.num_steps + 1) * tokens),
    )


def _construction(parameters: Parameters) -> Need:
    settings = parameters.construction
    names = ("size_dims", "error_dims", "sweep_dim")
    dims = [*settings.size_dims, *settings.error_dims, settings.sweep_dim]
    rows = max(dims) * (max(dims) + 3)
    return Need(
        f"constructed networks of {rows:,} hidden rows",
        tuple(f"construction.{name}" for name in names),
        FLOAT * 40 * rows * rows,
    )


def _construction_prompts(parameters: Parameters) -> Need:
    c = parameters.construction
    tokens = 2 * max(
        c.num_examples * c.num_prompts * max(c.error_dims) ** 2,
        c.sweep_num_examples * c.sweep_num_prompts * c.sweep_dim**2,
    )
    names = ("num_examples", "num_prompts", "sweep_num_examples", "sweep_num_prompts")
    return Need(
        "what the constructed networks hold of their prompts",
        tuple(f"construction.{name}" for name in names),
        2 * DOUBLE * tokens,
    )


def _identification(parameters: Parameters) -> Need:
    settings, task = parameters.identification, parameters.task
    count = max(settings.num_prompts, settings.num_calibration_prompts, settings.num_tie_prompts)
    filters = settings.filters
    prompts = 4 * DOUBLE * count * task.num_examples * (task.dim + 1)
    spectra = DOUBLE * filters.num_prompts * task.dim * (filters.num_queries + 3 * task.dim)
    draws = DOUBLE * count * settings.num_resamples
    return Need(
        "the prompts of the conditions, and their resamples",
        (
            "identification.num_prompts",
            "identification.num_calibration_prompts",
            "identification.num_resamples",
            "identification.filters.num_prompts",
        ),
        prompts + spectra + draws,
    )


NEEDS: dict[str, tuple[Callable[[Parameters], Need], ...]] = {
    "draw_evaluation_prompts": (_evaluation_prompts, _pool),
    "draw_evaluation_queries": (_queries,),
    "draw_probing_prompts": (_probing_prompts, _pool),
    "train_learner": (training_need, _pool),
    "train_control_learner": (training_need,),
    "estimate_baseline_predictions": (_predictions,),
    "estimate_learner_weights": (_queries,),
    "measure_spd": (_predictions, _resamples("comparison")),
    "collect_hidden_states": (_hidden_states,),
    "train_probes": (_probes, _resamples("probing")),
    "construct_learner": (_calibration,),
    "measure_sizes": (_construction,),
    "measure_errors": (_construction_prompts,),
    "identify": (_identification,),
}
"""What each node needs, by its name without its box."""


def check_sizes(parameters: Parameters, nodes: Iterable[str]) -> None:
    """Refuse a run that needs more memory than there is.

    Args:
        parameters: of the run.
        nodes: names of its nodes, such as ``probing.train_probes``.

    Raises:
        SizeError: a line for each need that is too large: the parameters, what they ask for, and
            what the machine has.
    """
    memory, on_gpu = machine_memory(), gpu_memory(parameters.device)
    problems = []
    for need in _needs(parameters, nodes):
        has = on_gpu if need.on_device and on_gpu else memory
        if need.num_bytes > has:
            given = ", ".join(_given(parameters, need.fields))
            problems.append(
                f"{given}: {need.what} takes at least {show_bytes(need.num_bytes)}; allowed: what "
                f"fits into the {show_bytes(has)} of this {'GPU' if has == on_gpu else 'machine'}"
            )
    if problems:
        raise SizeError("\n".join(dict.fromkeys(problems)))


def _needs(parameters: Parameters, nodes: Iterable[str]) -> Iterator[Need]:
    for name in nodes:
        for estimate in NEEDS.get(name.rpartition(".")[2], ()):
            yield estimate(parameters)


def _given(parameters: Parameters, fields: Iterable[str]) -> Iterator[str]:
    """``model.width=64``, without what is left to a default of None."""
    flat = parameters.flat("")
    for field in fields:
        if flat.get(field) is not None:
            yield f"{field}={flat[field]}"


def machine_memory() -> int:
    """Bytes of memory that this process can have: the machine's, its control group's, its limit."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CONTROL_GROUP:
        if path.exists() and (text := path.read_text().strip()).isdigit():
            found.append(int(text))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(found if soft == resource.RLIM_INFINITY else [*found, soft])


def gpu_memory(device: str) -> int | None:
    """Bytes of the GPU that a run on ``device`` takes; None: it takes none."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[1]


def show_bytes(number: int) -> str:
    """``3.2 TB``."""
    size, units = float(number), ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
