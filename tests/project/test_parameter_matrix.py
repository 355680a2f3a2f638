"""Parameters that once ended as a traceback in the middle of a run, with files already written.

Each ends in results, or in one line that names the field, what was given and what is allowed.
"""

import copy
import importlib
import resource
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner

from incontext_linear.config import MOST, ModelConfig, TaskConfig
from incontext_linear.datasets import CheckpointsDataset
from incontext_linear.learner.transformer import Transformer
from incontext_linear.parameters import ParameterError, check_parameters
from incontext_linear.runs import sizes
from incontext_linear.runs.rehearsal import rehearse
from incontext_linear.runs.sizes import SizeError, check_sizes, machine_memory, num_parameters

CONF = str(Path(__file__).parents[2] / "conf")


@pytest.fixture(scope="module")
def test_environment():
    loader = OmegaConfigLoader(
        CONF,
        base_env="base",
        default_run_env="base",
        env="test",
        merge_strategy={"parameters": "soft"},
    )
    return loader["parameters"]


def changed(tree, changes):
    tree = copy.deepcopy(tree)
    for name, value in changes.items():
        *branches, leaf = name.split(".", 1) if name.startswith("baselines") else name.split(".")
        node = tree
        for branch in branches:
            node = node[branch]
        node[leaf] = value
    return tree


TWICE = r"is given twice; allowed: each value once"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"probing.fit.validation_fraction": 0.5, "probing.fit.test_fraction": 0.5},
            r"probing\.fit: validation_fraction=0\.5 and test_fraction=0\.5 .*a sum below 1",
        ),
        (
            {"data_generation.num_probing_prompts": 1},
            r"probing\.num_prompts: 1 probing prompts cannot be split .*at least 2, 1 and 2",
        ),
        ({"data_generation.num_probing_prompts": 2}, r"probing\.num_prompts: 2 .*allowed"),
        ({"probing.num_prompts": 4}, r"probing\.num_prompts: 4 .*allowed: at least 2, 1 and 2"),
        (
            {"probing.calibration.num_prompts": 3},
            r"probing\.calibration\.num_prompts: 3 .*allowed: at least 2, 1 and 2",
        ),
        ({"probing.layers": [1, 1]}, r"probing\.layers: 1 " + TWICE),
        ({"probing.fit.hidden_units": [4, 8, 4]}, r"probing\.fit\.hidden_units: 4 " + TWICE),
        ({"probing.targets": ["moment", "moment"]}, r"probing\.targets: 'moment' " + TWICE),
        (
            {"probing.interventions.methods": ["minimal_edit"] * 2},
            r"probing\.interventions\.methods: 'minimal_edit' " + TWICE,
        ),
        ({"probing.context_lengths": [3, 3]}, r"probing\.context_lengths: 3 " + TWICE),
        (
            {"probing.layerwise.gradient_steps": [1, 2, 2]},
            r"probing\.layerwise\.gradient_steps: 2 " + TWICE,
        ),
        (
            {"probing.layerwise.newton_steps": [0, 0]},
            r"probing\.layerwise\.newton_steps: 0 " + TWICE,
        ),
        ({"probing.ridge_penalty": 1e300}, r"probing\.ridge_penalty: .*; given 1e\+300"),
        ({"probing.gradient_step_size": 1e-300}, r"probing\.gradient_step_size: .*; given 1e-300"),
        ({"construction.num_examples": 1}, r"construction\.num_examples: .* equal to 2; given 1"),
        ({"construction.sweep_num_examples": 1}, r"sweep_num_examples: .* equal to 2; given 1"),
        ({"construction.size_dims": [2, 2]}, r"construction\.size_dims: 2 " + TWICE),
        (
            {"construction.penalty": 1e300},
            r"construction\.penalty: .* equal to 10{15}; given 1e\+300",
        ),
        ({"construction.num_prompts": True}, r"construction\.num_prompts: .*integer; given True"),
        ({"construction.paddings": [1e300]}, r"construction\.paddings\.0: .*; given 1e\+300"),
        ({"task.num_examples": 1}, r"task\.num_examples: 1 given.*allowed: at least 2"),
        ({"task.inputs": "normal*0+0"}, r"task\.inputs: all inputs are 0; allowed"),
        ({"task.weights": "normal*0+0"}, r"task\.weights: all labels are 0.*allowed"),
        ({"evaluation.task": {"weights": "normal*0+0"}}, r"evaluation\.task\.weights: all labels"),
        ({"task.inputs": "normal*1e300+0"}, r"task\.inputs\.0\.scale: .*; given 1e\+300"),
        ({"task.pool_size": MOST}, r"task\.pool_size: .* task\.dim=2 given; allowed: at most 107"),
        ({"training.loss_floor": 1e300}, r"training\.loss_floor: .*; given 1e\+300"),
        ({"training.weight_decay": 1e300}, r"training\.weight_decay: .*; given 1e\+300"),
        ({"task.noise_std": 1e300}, r"task\.noise_std: .*; given 1e\+300"),
        ({"baselines.../../x": {"type": "Averaging"}}, r"baselines\.\.\./\.\./x: MLflow cannot"),
        ({"baselines./x": {"type": "Averaging"}}, r"baselines\./x: MLflow cannot"),
        ({"baselines.a//b": {"type": "Averaging"}}, r"baselines\.a//b: MLflow cannot"),
        ({"baselines." + 300 * "a": {"type": "Averaging"}}, r"at most 200"),
        ({"model.width": MOST + 1}, rf"model\.width: .*equal to {MOST}; given {MOST + 1}"),
        ({"model.width": 10**8, "model.num_heads": 3}, r"num_heads=3 does not divide.*1, 2, 4, 5"),
        ({"identification.filters.conditions": [1.0, 1.0]}, r"conditions: 1\.0 " + TWICE),
        ({"identification.filters.families": ["ridge", "ridge"]}, r"families: 'ridge' " + TWICE),
        (
            {"identification.examples_seen": [1, 1]},
            r"identification\.examples_seen: 1\.?0? " + TWICE,
        ),
        ({"identification.by_context": ["ridge"] * 2}, r"by_context: 'ridge' " + TWICE),
        ({"identification.shifts": {"no_such": None}}, r"identification\.shifts: .*'no_such'"),
        (
            {"identification.shifts": {"input_scale": [-1.0]}},
            r"identification\.shifts: shift 'input_scale': .*-1\.0.*allowed",
        ),
        (
            {"identification.families": {"mine": {"type": "Rigde"}}},
            r"identification\.families: .*'Rigde'",
        ),
        ({"identification.num_prompts": 0}, r"identification\.num_prompts: .*; given 0"),
        ({"identification.num_resamples": "many"}, r"identification\.num_resamples: .*'many'"),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(value)[:60],
)
def test_what_cannot_end_in_results_is_refused_in_one_line(test_environment, changes, says):
    with pytest.raises(ParameterError, match=says) as refusal:
        check_parameters(changed(test_environment, changes))
    assert len(str(refusal.value).splitlines()) == 1


class WrongShape:
    """A predictor that forgets the prefixes."""

    def __call__(self, xs, ys):
        return ys[:, :1]


class Raises:
    """A predictor that is not finished."""

    def __call__(self, xs, ys):
        raise NotImplementedError


class NoTensor:
    """A predictor that answers with something else."""

    def __call__(self, xs, ys):
        return ys.numpy()


def same_for_all(xs, ys):
    """A target that no prompt decides."""
    return torch.ones(len(xs), 2)


def rehearsed(parameters, *datasets, nodes=()):
    rehearse(check_parameters(parameters), nodes, datasets)


@pytest.mark.parametrize(
    ("predictor", "says"),
    [
        ("WrongShape", r"baselines\.mine: gave a float64 tensor of shape \(4, 1\) .*\(4, 6\)"),
        ("Raises", r"baselines\.mine: asked for predictions it raised NotImplementedError"),
        ("NoTensor", r"baselines\.mine: gave a ndarray for .*allowed: .*\(4, 6\)"),
    ],
)
def test_a_predictor_is_asked_before_anything_is_written(test_environment, predictor, says):
    own = {"baselines.mine": {"type": f"{__name__}.{predictor}"}}
    parameters = changed(test_environment, own)
    rehearsed(parameters, "learner")  # a run that asks no predictor
    with pytest.raises(ValueError, match=says):
        rehearsed(parameters, "baseline_predictions")


def test_a_target_that_holds_nothing_is_found_before_anything_is_written(test_environment):
    target = f"{__name__}.same_for_all"
    own = {"probing.targets": ["moment", "least_squares", target]}
    with pytest.raises(ValueError, match=r"probing\.targets: .*same_for_all.*same for every"):
        rehearsed(changed(test_environment, own), "probed")
    constant = {"task.inputs": "normal*0+1"}
    with pytest.raises(ValueError, match=r"probing\.targets: .*'gram' is the same for every"):
        rehearsed(changed(test_environment, constant), "probed")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_queries": 3}, r"num_queries: 3 .*allowed: more than task\.dim \+ 1, which is 3"),
        ({"context_length": 6}, r"context_length: .*=6 is not allowed: .* 1 to 5"),
    ],
)
def test_filters_that_do_not_fit_the_task_are_refused_where_they_are_measured(
    test_environment, changes, says
):
    own = {f"identification.filters.{name}": value for name, value in changes.items()}
    parameters = changed(test_environment, own)
    rehearsed(parameters, "learner")
    with pytest.raises(ValueError, match=r"identification\.filters\." + says):
        rehearsed(parameters, "layer_filters")


def test_a_gpu_that_is_not_there_is_missed_before_anything_is_written(
    test_environment, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device: cuda was asked for.*allowed: auto, cpu"):
        rehearsed(changed(test_environment, {"device": "cuda"}), "params:device")


@pytest.mark.parametrize(
    ("changes", "node"),
    [
        ({"model.width": 10**6}, "train_learner"),
        ({"training.batch_size": MOST}, "train_learner"),
        ({"data_generation.num_evaluation_prompts": MOST}, "draw_evaluation_prompts"),
        ({"comparison.num_queries": MOST}, "draw_evaluation_queries"),
        ({"task.pool_size": MOST, "task.dim": 1}, "draw_evaluation_prompts"),
        ({"comparison.bootstrap.num_resamples": MOST}, "measure_spd"),
        ({"data_generation.num_probing_prompts": 10**8}, "collect_hidden_states"),
        ({"probing.fit.hidden_units": [10**9]}, "train_probes"),
        ({"task.dim": 10**4}, "construct_learner"),
        ({"construction.size_dims": [10**3]}, "measure_sizes"),
        ({"construction.num_prompts": MOST}, "measure_errors"),
        ({"identification.num_prompts": MOST}, "identify"),
    ],
)
def test_sizes_that_no_machine_has_are_refused_with_what_this_one_has(
    test_environment, changes, node, monkeypatch
):
    monkeypatch.setattr(sizes, "machine_memory", lambda: 4 * 10**9)
    monkeypatch.setattr(sizes, "gpu_memory", lambda device: None)
    more = {"comparison.num_queries": 10**6, "identification.filters.num_queries": 10**6}
    raw = changed(test_environment, more | changes if "task.dim" in changes else changes)
    parameters = check_parameters(raw)
    check_sizes(check_parameters(test_environment), [f"box.{node}"])
    with pytest.raises(SizeError, match=r"takes at least .*B; allowed: .* 4 GB of this machine"):
        check_sizes(parameters, [f"box.{node}"])
    name = next(iter(changes))
    with pytest.raises(SizeError, match=name.replace(".", r"\.")):
        check_sizes(parameters, [node])


@pytest.mark.parametrize("heads", [1, 4])
def test_weights_are_counted_without_making_them(heads):
    task, model = (
        TaskConfig(dim=3, num_examples=5),
        ModelConfig(num_layers=2, num_heads=heads, width=8, mlp_width=12),
    )
    made = Transformer(3, 5, model)
    assert num_parameters(task, model) == sum(p.numel() for p in made.parameters())


def test_a_limit_of_the_process_counts_as_the_machines_memory():
    assert 10**8 < machine_memory() < 10**14
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (10**12, before[1]))
    try:
        assert machine_memory() <= 10**12
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


PIPELINES = ("data_generation", "model_training", "behavioral_comparison", "probing")


def run(raw, *names):
    """The pipelines in memory: no Kedro session, no MLflow."""
    parameters = check_parameters(raw)
    packages = (importlib.import_module(f"incontext_linear.pipelines.{name}") for name in names)
    pipeline = sum((package.create_pipeline() for package in packages), Pipeline([]))
    rehearse(parameters, [node.name for node in pipeline.nodes], pipeline.datasets())
    entries: dict[str, Any] = {
        name: MemoryDataset(copy_mode="assign") for name in pipeline.all_outputs()
    }
    for name in pipeline.inputs():
        value = parameters
        for part in name.removeprefix("params:").split("."):
            value = getattr(value, part, None)
        entries[name] = MemoryDataset(value, copy_mode="assign")
    return entries, pipeline


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"task.dim": 1, "task.pool_size": 1, "probing.targets": ["moment", "gram"]}, PIPELINES),
        ({"task.dim": 8, "comparison.num_queries": 9}, PIPELINES),
        ({"task.num_examples": 2, "probing.context_lengths": [None]}, PIPELINES),
        ({"task.inputs": "normal*1e6+0"}, PIPELINES),
        ({"task.inputs": "normal*1e-6+0", "task.weights": "normal*1e-6+0"}, PIPELINES),
        (
            {
                "data_generation.num_evaluation_prompts": 1,
                "comparison.num_weight_prompts": 1,
                "comparison.bootstrap.num_resamples": 1,
                "training.num_steps": 1,
                "baselines.ridge_1": {"type": "Ridge", "penalty": 1e300},
            },
            PIPELINES[:3],
        ),
    ],
    ids=["d=1, pool of 1", "n < d", "n = 2", "large", "tiny", "one prompt"],
)
def test_numerical_edges_end_in_results(test_environment, tmp_path, changes, names):
    entries, pipeline = run(changed(test_environment, FEW | changes), *names)
    entries["training_checkpoints"] = CheckpointsDataset(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SequentialRunner().run(pipeline, DataCatalog(entries))
    plt.close("all")


FEW = {
    "training.num_steps": 10,
    "probing.fit.num_steps": 4,
    "probing.fit.hidden_units": [4],
    "probing.fit.num_seeds": 1,
    "probing.controls.num_steps": 4,
    "probing.context_lengths": [None],
    "probing.interventions.targets": ["moment"],
}
