"""What the hidden states hold, layer by layer, and whether it is used (paper, section 5, and
beyond).
"""

import logging
from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from incontext_linear.config import DistributionConfig, TaskConfig, resolve_device
from incontext_linear.construction import gradient_descent
from incontext_linear.construction.config import FLOAT32
from incontext_linear.figures.probing import (
    plot_attention,
    plot_calibration,
    plot_controls,
    plot_movements,
    plot_probe_attention,
    plot_probe_scores,
    plot_progress,
    plot_selectivity,
)
from incontext_linear.learner.saved import Learner, check_same_shape
from incontext_linear.learner.transformer import Transformer
from incontext_linear.predictors import GradientDescent, IterativeNewton, OrdinaryLeastSquares
from incontext_linear.probing import (
    Column,
    LinearReadout,
    appearance_tables,
    build_targets,
    collect_states,
    fit_probes,
    overlap_table,
    progress_tables,
    read_predictions,
    score_table,
    selectivity_table,
    split_prompts,
    target_values,
)
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.interventions import intervene, movement_table, pair_prompts
from incontext_linear.tables import MetricHistories, metric_history
from incontext_linear.tasks import generator
from incontext_linear.training import Recipe, train
from incontext_linear.training.config import TrainingConfig

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


FITTED_ON = "fitted_on"
"""Among saved read-outs: what tells the learner and the prompts that they were fitted on from
others.
"""

_MAKE_PROBES = "make them with `kedro run --pipelines probing --tags probes`, with these parameters"

WRONG_NETWORK = 0.01
"""A constructed network that misses gradient descent by this share of its predictions tells
nothing.
"""


def train_control_learner(
    learner: Learner,
    training: TrainingConfig,
    probing: ProbingConfig,
    seed: int,
    device: str,
    pretrained: Learner | None,
) -> Learner:
    """A learner of the same shape that never had to learn in context: its task is the one fixed w =
    1.

    Raises:
        ValueError: if the pretrained control, where the catalog has one, has another shape than the
            learner.
    """
    expected = (learner.task, learner.model.config)
    if pretrained is not None:
        check_same_shape(
            "the pretrained control", (pretrained.task, pretrained.model.config), expected
        )
        return pretrained
    task = learner.task.model_copy(
        update={"weights": (DistributionConfig(scale=0.0, shift=1.0),), "pool_size": None}
    )
    steps = training.model_copy(update={"num_steps": probing.control_steps})
    return train(Recipe(task, learner.model.config, steps, seed), device)


def collect_hidden_states(
    learner: Learner, prompts: Tensors, probing: ProbingConfig, device: str
) -> Tensor:
    """The learner's residual streams (layers, tokens, prompts, width), which stay in memory."""
    xs, ys = _prompts(prompts, probing, device)
    return collect_states([_model(learner, device)], xs, ys, _layers(probing, learner))


def train_probes(
    hidden: Tensor,
    learner: Learner,
    prompts: Tensors,
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame, Tensors]:
    """Fit every probe on the learner: errors on the test prompts, attention, and the linear
    read-outs.
    """
    xs, ys = _prompts(prompts, probing, device)
    fit = fit_probes(hidden, _layers(probing, learner), _columns(probing, xs, ys), probing, seed)
    readouts = _pack(fit.linear) | {FITTED_ON: _identify(learner, xs, ys)}
    return fit.error_table("learner"), fit.attention_table("learner"), readouts


def train_control_probes(
    hidden: Tensor,
    learner: Learner,
    control: Learner,
    prompts: Tensors,
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> pd.DataFrame:
    """Fit the same probes where they should find nothing of the learner's own.

    On the control learner and on an untrained one, both in one pass; and on the learner itself for
    targets that are another prompt's: of the same mean, covariance and tails, and unrelated to the
    hidden states.
    """
    xs, ys = _prompts(prompts, probing, device)
    layers, columns = _layers(probing, learner), _columns(probing, xs, ys)
    untrained = Transformer(learner.task.dim, learner.task.num_examples, learner.model.config)
    untrained.initialize(generator(seed, "untrained learner")).to(xs.device)
    models = [_model(control, device), untrained]
    both = fit_probes(collect_states(models, xs, ys, layers), layers * 2, columns, probing, seed)
    order = torch.randperm(len(xs), generator=generator(seed, "random targets")).to(xs.device)
    random = [column._replace(values=column.values[order]) for column in columns]
    shuffled = fit_probes(hidden, layers, random, probing, seed)
    first, second = both.halves()
    named = {"control_learner": first, "untrained_learner": second, "random_targets": shuffled}
    return pd.concat([fit.error_table(name) for name, fit in named.items()], ignore_index=True)


def score_probes(errors: pd.DataFrame, probing: ProbingConfig, seed: int) -> pd.DataFrame:
    """Held-out error and R² of every probe, with intervals over prompts and seeds."""
    return score_table(errors, probing, seed)


def measure_selectivity(
    errors: pd.DataFrame, control_errors: pd.DataFrame, probing: ProbingConfig, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Improvement over the best control; where each target appears; which appears before which."""
    selectivity = selectivity_table(errors, control_errors, probing, seed)
    return selectivity, *appearance_tables(errors, control_errors, probing, seed)


def measure_overlap(
    prompts: Tensors, probing: ProbingConfig, device: str, seed: int
) -> pd.DataFrame:
    """How well each target can be told from each other one, without any learner."""
    xs, ys = _prompts(prompts, probing, device)
    columns = _columns(probing, xs, ys)
    return overlap_table(columns, split_prompts(len(xs), probing, seed), probing, seed)


def measure_causality(
    learner: Learner,
    prompts: Tensors,
    readouts: Tensors,
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> pd.DataFrame:
    """Replace what the layers hold by a donor prompt's, and measure how far the prediction follows.

    Only prompts that no probe was fitted on are intervened on; patterns are estimated on those that
    were.

    Raises:
        ValueError: if the read-outs were fitted on another learner or on other prompts.
    """
    xs, ys = _prompts(prompts, probing, device)
    fitted_on, given = readouts.get(FITTED_ON), _identify(learner, xs, ys)
    if fitted_on is None or not torch.allclose(fitted_on, given, rtol=1e-6, atol=0):
        raise ValueError(
            f"the saved probes are of another learner or of other prompts; {_MAKE_PROBES}"
        )
    split = split_prompts(len(xs), probing, seed)
    chosen, others = (
        part.to(xs.device) for part in (split.test[: probing.causal_prompts], split.train)
    )
    model, layers = _model(learner, device), _layers(probing, learner)
    tables = []
    for seen in _context_lengths(probing, xs.shape[1]):
        pairs = pair_prompts(xs[chosen], ys[chosen], seen)
        probes = {
            target: {layer: _unpack(readouts, target, seen, layer, xs.device) for layer in layers}
            for target in probing.causal_targets
        }
        of_others = xs[others, : seen + 1], ys[others, : seen + 1]
        rng = generator(seed, "random directions", seen)
        moved = intervene(model, pairs, of_others, probes, layers, rng)
        table = movement_table(moved, probing.confidence, probing.num_resamples, seed)
        table.insert(2, "examples_seen", seen)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def construct_learner(task: TaskConfig, probing: ProbingConfig) -> Learner:
    """A network whose algorithm is known: gradient descent by construction, a layer a step."""
    network = gradient_descent(
        task.dim,
        task.num_examples,
        step_size=probing.gradient_step_size,
        num_steps=probing.calibration_steps,
        # No division here, so a small padding does, beside which probes in float32 still see the
        # other rows.
        constants=FLOAT32.model_copy(update={"padding": 1e4}),
        dtype=torch.float32,
    )
    return Learner(network, task)


def train_calibration_probes(
    constructed: Learner, prompts: Tensors, probing: ProbingConfig, device: str, seed: int
) -> tuple[pd.DataFrame, Tensors]:
    """Linear probes on every layer of the constructed network: errors on the test prompts, and
    read-outs.

    Warns where the network does not do what it is built for: its products are exact for numbers of
    moderate size only, and descent with too long a step grows beyond it.
    """
    settings = _calibrating(probing)
    missed = _missed(constructed, *_prompts(prompts, settings, device), settings)
    if not missed < WRONG_NETWORK:
        logger.warning(
            "the constructed network misses %d steps of gradient descent at step size %g by %.2g "
            "of its "
            "predictions on these prompts: the calibration tells nothing; allowed: a smaller "
            "probing.gradient_step_size, or inputs and weights of size about 1",
            probing.calibration_steps,
            probing.gradient_step_size,
            missed,
        )
    hidden = collect_hidden_states(constructed, prompts, settings, device)
    errors, _, readouts = train_probes(hidden, constructed, prompts, settings, device, seed)
    return errors.assign(source="constructed_learner"), readouts


def score_calibration(
    errors: pd.DataFrame, constructed: Learner, probing: ProbingConfig, seed: int
) -> pd.DataFrame:
    """Held-out error of every probe, beside the ``line`` of the algorithm that its layer carries
    out.
    """
    lines = ["embedding", *(layer.line for layer in constructed.model.layers)]
    scores = score_table(errors, probing, seed)
    return scores.assign(line=[lines[layer] for layer in scores["layer"]])


def calibrate_interventions(
    constructed: Learner,
    prompts: Tensors,
    readouts: Tensors,
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> pd.DataFrame:
    """What the interventions move where it is known which layer computes from what."""
    return measure_causality(constructed, prompts, readouts, _calibrating(probing), device, seed)


def calibrate_progress(
    constructed: Learner, prompts: Tensors, probing: ProbingConfig, device: str, seed: int
) -> pd.DataFrame:
    """The step that each layer of the constructed network seems to have reached, where the truth is
    known.
    """
    settings = _calibrating(probing)
    hidden = collect_hidden_states(constructed, prompts, settings, device)
    return measure_progress(hidden, constructed, prompts, settings, device, seed)[1]


def _calibrating(probing: ProbingConfig) -> ProbingConfig:
    """All layers of the constructed network, and linear probes alone, which interventions are based
    on.
    """
    num_prompts = min(
        probing.num_prompts or probing.calibration_prompts, probing.calibration_prompts
    )
    changes = {"layers": None, "hidden_units": (), "num_seeds": 1, "num_prompts": num_prompts}
    return probing.model_copy(update=changes)


def _missed(constructed: Learner, xs: Tensor, ys: Tensor, probing: ProbingConfig) -> float:
    """Relative root mean square of what the constructed network predicts otherwise than gradient
    descent.
    """
    descent = GradientDescent(probing.gradient_step_size, probing.calibration_steps)
    with torch.no_grad():
        reference = descent(xs, ys)
        difference = _model(constructed, xs.device.type)(xs, ys) - reference
    return (difference.square().mean() / reference.square().mean()).sqrt().item()


def measure_progress(
    hidden: Tensor,
    learner: Learner,
    prompts: Tensors,
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions read out of every layer, beside m steps of gradient descent and of iterative
    Newton.
    """
    xs, ys = _prompts(prompts, probing, device)
    split = split_prompts(len(xs), probing, seed)
    read = read_predictions(hidden, ys, split)
    step_size = probing.gradient_step_size
    algorithms = {
        "gradient_descent": {m: GradientDescent(step_size, m) for m in probing.gradient_steps},
        "iterative_newton": {m: IterativeNewton(m) for m in probing.newton_steps},
        "least_squares": {0: OrdinaryLeastSquares()},
        "learner": {0: _model(learner, device)},
    }
    test = split.test.to(xs.device)
    layers, seen = _layers(probing, learner), _context_lengths(probing, xs.shape[1])
    with torch.no_grad():
        return progress_tables(read, algorithms, xs[test], ys[test], layers, seen, probing, seed)


def average_attention(learner: Learner, prompts: Tensors, device: str) -> Tensors:
    """The learner's own attention weights (L, M, T, T), averaged over prompts."""
    where = resolve_device(device)
    model, num_prompts = learner.model.to(where), min(256, len(prompts["xs"]))
    xs, ys = (prompts[name][:num_prompts].to(where) for name in ("xs", "ys"))
    with torch.no_grad():
        total = sum(
            model.attention_weights(*batch).sum(1)
            for batch in zip(xs.split(32), ys.split(32), strict=True)
        )
    return {"attention": (total / num_prompts).cpu()}


def report_probing_metrics(scores: pd.DataFrame) -> MetricHistories:
    """Probe R² as metric histories whose step is the layer."""
    return _histories(
        scores, "probe", ["kind", "hidden_units", "target", "examples_seen"], "r_squared"
    )


def report_selectivity_metrics(selectivity: pd.DataFrame) -> MetricHistories:
    """Selectivity as metric histories whose step is the layer."""
    keys = ["kind", "hidden_units", "target", "examples_seen"]
    return _histories(selectivity, "selectivity", keys, "selectivity")


def report_causality_metrics(causality: pd.DataFrame) -> MetricHistories:
    """The fraction of the way to the donor's prediction, as metric histories whose step is the
    layer.
    """
    return _histories(causality, "moved", ["method", "target", "examples_seen"], "fraction")


def report_progress_metrics(nearest: pd.DataFrame) -> MetricHistories:
    """The nearest number of steps of each algorithm, as metric histories whose step is the
    layer.
    """
    return _histories(nearest, "nearest_steps", ["algorithm", "examples_seen"], "nearest_steps")


def report_calibration_metrics(scores: pd.DataFrame, causality: pd.DataFrame) -> MetricHistories:
    """R² of the probes of the constructed network and what its interventions move, against its
    layers.
    """
    return _histories(
        scores, "calibration.probe", ["target", "examples_seen"], "r_squared"
    ) | _histories(
        causality, "calibration.moved", ["method", "target", "examples_seen"], "fraction"
    )


def draw_calibration(scores: pd.DataFrame, causality: pd.DataFrame) -> Figure:
    """What can be read of a network whose algorithm is known, and what interventions move, against
    layer.
    """
    return plot_calibration(scores, causality)


def draw_probe_scores(scores: pd.DataFrame) -> Figure:
    """Probe error against layer, a curve a target, a panel a read-out."""
    return plot_probe_scores(scores)


def draw_probe_attention(attention: pd.DataFrame) -> Figure:
    """Where the probes look: attention over positions, a row a layer."""
    return plot_probe_attention(attention)


def draw_controls(
    scores: pd.DataFrame, control_scores: pd.DataFrame, attention: pd.DataFrame
) -> Figure:
    """Error against layer, the controls' dashed, beside the best probe's attention (paper, Figure
    4).
    """
    return plot_controls(scores, control_scores, attention)


def draw_selectivity(selectivity: pd.DataFrame, appearances: pd.DataFrame) -> Figure:
    """Selectivity against layer, and where each target appears."""
    return plot_selectivity(selectivity, appearances)


def draw_causality(causality: pd.DataFrame) -> Figure:
    """How far each intervention moves the prediction, against layer."""
    return plot_movements(causality)


def draw_progress(progress: pd.DataFrame, nearest: pd.DataFrame) -> Figure:
    """Layers beside steps of each algorithm, the nearest marked."""
    return plot_progress(progress, nearest)


def draw_attention(attention: Tensors) -> Figure:
    """Where the learner looks: its mean attention maps, a panel a layer and head."""
    return plot_attention(attention["attention"].numpy())


def _prompts(prompts: Tensors, probing: ProbingConfig, device: str) -> tuple[Tensor, Tensor]:
    """xs and ys of the prompts that are used, on the device, no longer than the longest that is
    probed.
    """
    where, num_examples = resolve_device(device), prompts["xs"].shape[1]
    longest = (
        max(_context_lengths(probing, num_examples)) + 1
    )  # the query's token comes behind the context
    xs, ys = (prompts[name][: probing.num_prompts, :longest].to(where) for name in ("xs", "ys"))
    return xs, ys


def _model(learner: Learner, device: str) -> Transformer:
    return learner.model.to(resolve_device(device))


def _layers(probing: ProbingConfig, learner: Learner) -> list[int]:
    """The layers to probe, checked against the saved learner, whatever the parameters say."""
    num_layers = learner.model.config.num_layers
    layers = list(range(num_layers + 1) if probing.layers is None else probing.layers)
    if max(layers) > num_layers:
        raise ValueError(
            f"probing.layers={layers}, but the saved learner has {num_layers} layers; "
            f"allowed: 0 to {num_layers}, or train another learner with the pipeline model_training"
        )
    return layers


def _context_lengths(probing: ProbingConfig, num_examples: int) -> list[int]:
    """Numbers of examples seen, checked against the saved prompts, whatever the parameters say."""
    seen = [num_examples - 1 if k is None else k for k in probing.context_lengths]
    if max(seen) >= num_examples:
        raise ValueError(
            f"probing.context_lengths={seen}, but the saved prompts have {num_examples} examples; "
            f"allowed: 1 to {num_examples - 1}, or draw new prompts with the pipeline "
            "data_generation"
        )
    return list(dict.fromkeys(seen))


def _columns(probing: ProbingConfig, xs: Tensor, ys: Tensor) -> list[Column]:
    """Every target at every number of examples."""
    targets = build_targets(probing.targets, probing.ridge_penalty)
    return [
        Column(name, seen, target_values(name, target, xs[:, :seen], ys[:, :seen]))
        for seen in _context_lengths(probing, xs.shape[1])
        for name, target in targets.items()
    ]


def _identify(learner: Learner, xs: Tensor, ys: Tensor) -> Tensor:
    """Three sums that differ where the learner or the prompts do."""
    weights = torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])
    return torch.stack([values.double().abs().sum().cpu() for values in (weights, xs, ys)])


def _pack(readouts: dict[tuple[str, int, int], LinearReadout]) -> Tensors:
    """Read-outs as named tensors, for safetensors: ``least_squares.k11.layer2.matrix``."""
    return {
        f"{target}.k{seen}.layer{layer}.{part}": getattr(readout, part).cpu()
        for (target, seen, layer), readout in readouts.items()
        for part in ("attention", "matrix", "bias")
    }


def _unpack(
    tensors: Tensors, target: str, seen: int, layer: int, device: torch.device
) -> LinearReadout:
    """One saved read-out, for the tokens of a prompt of ``seen`` examples and a query."""
    name = f"{target}.k{seen}.layer{layer}"
    if f"{name}.matrix" not in tensors:
        raise ValueError(
            f"there is no saved probe of {target!r} after {seen} examples in layer {layer}; "
            f"{_MAKE_PROBES}"
        )
    attention, matrix, bias = (
        tensors[f"{name}.{part}"].to(device) for part in ("attention", "matrix", "bias")
    )
    return LinearReadout(attention[: 2 * seen + 1], matrix, bias)


def _histories(
    table: pd.DataFrame, prefix: str, keys: Sequence[str], value: str
) -> MetricHistories:
    """A metric history for each group of rows, its step the layer: ``probe.mlp_64.moment.k11``."""
    histories = {}
    for group, rows in table.groupby(list(keys), sort=False):
        parts = dict(zip(keys, group, strict=True))
        units, seen = parts.pop("hidden_units", 0), parts.pop("examples_seen")
        words = [
            f"{word}_{units}" if name == "kind" and units else word for name, word in parts.items()
        ]
        histories[".".join([prefix, *words, f"k{seen}"])] = metric_history(
            rows["layer"], rows[value]
        )
    return histories
