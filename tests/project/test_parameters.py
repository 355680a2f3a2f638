import copy
from pathlib import Path

import click
import pytest
from kedro.config import OmegaConfigLoader

from incontext_linear.cli import split_params
from incontext_linear.parameters import ParameterError, check_parameters

OPTION = click.Context(click.Command("run")), click.Option(["--params"])
CONF = str(Path(__file__).parents[2] / "conf")


@pytest.fixture(scope="module")
def base():
    loader = OmegaConfigLoader(CONF, base_env="base", default_run_env="base")
    return loader["parameters"]


def changed(tree, name, value):
    tree = copy.deepcopy(tree)
    *branches, leaf = name.split(".")
    node = tree
    for branch in branches:
        node = node[branch]
    node[leaf] = value
    return tree


def test_the_base_parameters_are_valid(base):
    assert check_parameters(base).task.dim == base["task"]["dim"]


@pytest.mark.parametrize("env", ["test", "paper", "pretrained"])
def test_the_parameters_of_every_environment_are_valid(env):
    loader = OmegaConfigLoader(
        CONF,
        base_env="base",
        default_run_env="base",
        env=env,
        merge_strategy={"parameters": "soft"},
    )
    check_parameters(loader["parameters"])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("task.dim", -3, r"task\.dim: .*greater than 0; given -3"),
        (
            "task.dmi",
            3,
            r"task\.dmi: unknown parameter \(given 3\); allowed here: dim, num_examples",
        ),
        (
            "variant",
            {"sweeep": "x"},
            r"variant\.sweeep: unknown .* allowed here: sweep, name, folder",
        ),
        (
            "task.inputs",
            [{"kind": "normal", "scal": 2.0}],
            r"task\.inputs\.0\.scal: unknown .* allowed here: kind, scale, shift",
        ),
        (
            "tsk",
            {"dim": 3},
            r"tsk: unknown parameter .* allowed here: seed, device, registered_model, task",
        ),
        ("training.num_steps", "many", r"training\.num_steps: .*integer.*; given 'many'"),
        ("training.precision", "float16", r"training\.precision: .*'bfloat16'; given 'float16'"),
        ("device", "tpu", r"device: .*'cuda'; given 'tpu'"),
        (
            "model.num_heads",
            5,
            r"model: num_heads=5 does not divide width=64; allowed numbers of heads: 1, 2, 4",
        ),
        (
            "probing.layers",
            [0, 9],
            r"probing\.layers: layers \[9\] do not exist; allowed: 0 .* to 4",
        ),
        (
            "probing.layerwise.gradient_steps",
            [1, 10**9],
            r"probing\.layerwise\.gradient_steps\.1: .*less than or equal to 1000000",
        ),
        ("probing.num_prompts", 10**6, r"probing\.num_prompts: 1000000 given; allowed: at most"),
        (
            "probing.context_lengths",
            [4, 99],
            r"probing\.context_lengths: \[99\] .* allowed: 1 to 11",
        ),
        (
            "probing.targets",
            ["weights"],
            r"probing\.targets\.0: unknown target 'weights'; allowed: 'moment', ",
        ),
        (
            "probing.targets",
            ["no.such"],
            r"probing\.targets: cannot import the target 'no\.such'.*allowed",
        ),
        (
            "probing.interventions.targets",
            ["torch.sum"],
            r"probing\.interventions\.targets: \['torch\.sum'\] .* allowed: .*'moment'",
        ),
        (
            "probing.interventions.methods",
            ["swap"],
            r"probing\.interventions\.methods\.0: unknown intervention 'swap'; allowed: "
            "'minimal_edit', ",
        ),
        (
            "probing.interventions.methods",
            ["no.such"],
            r"probing\.interventions\.methods: cannot import .*'no\.such'.*allowed: the path",
        ),
        (
            "probing.fit.hidden_units",
            [0],
            r"probing\.fit\.hidden_units\.0: .*greater than 0; given 0",
        ),
        (
            "probing.num_seeds",
            3,
            r"probing\.num_seeds: unknown parameter \(given 3\); allowed here: layers, .*fit",
        ),
        ("comparison.bootstrap.confidence", 2, r"comparison\.bootstrap\.confidence: .*; given 2"),
        ("baselines.mine", 3, r"baselines\.mine: .*dictionary; given 3"),
        (
            "variant",
            {"sweeep": "depth"},
            r"variant\.sweeep: unknown parameter \(given 'depth'\); allowed here: sweep, name",
        ),
        (
            "task.inputs",
            [{"scale": 1.0, "shfit": 2.0}],
            r"task\.inputs\.0\.shfit: unknown parameter .* allowed here: kind, scale, shift",
        ),
        ("comparison.num_queries", 2, r"comparison\.num_queries: 2 .* more than task\.dim"),
        (
            "evaluation.task",
            {"dim": 4},
            r"evaluation\.task\.dim: 4 given; allowed here: num_examples, noise_std",
        ),
        (
            "evaluation.task",
            {"noise_std": -1.0},
            r"evaluation\.task\.noise_std: .*greater than or equal to 0; given -1.0",
        ),
        (
            "comparison.num_weight_prompts",
            10**6,
            r"comparison\.num_weight_prompts: 1000000 given; allowed",
        ),
        (
            "task.inputs",
            "normal*[1,2]+0",
            r"task\.inputs: cannot read .*SCALE and SHIFT one number.*; given 'normal\*\[1,2\]\+0'",
        ),
        ("task.weights", "gauss*2", r"task\.weights: cannot read the distribution 'gauss\*2'"),
        (
            "baselines.transformer",
            {"type": "Averaging"},
            r"baselines\.transformer: this name is the learner's own",
        ),
        (
            "baselines.λ",
            {"type": "Averaging"},
            r"baselines\.λ: MLflow cannot take this name; allowed: letters",
        ),
        ("baselines", {}, r"baselines: none given"),
        (
            "task.dim",
            True,
            r"task\.dim: input should be a valid integer; given True",
        ),
        ("training.compile", "maybe", r"training\.compile: .*'auto'; given 'maybe'"),
        ("baselines.mine", {"type": "Rigde"}, r"baselines.*Rigde.*Ridge"),
        ("baselines.mine", {"type": "Ridge", "penalti": 1}, r"baselines.*penalti.*penalty"),
        ("baselines.mine", {"type": "Ridge", "penalty": -1}, r"baselines.*penalty.*-1"),
    ],
)
def test_an_error_names_the_parameter_what_was_given_and_what_is_allowed(base, name, value, says):
    with pytest.raises(ParameterError, match=f"(?s){says}"):
        check_parameters(changed(base, name, value))


def test_null_takes_a_baseline_away(base):
    parameters = check_parameters(changed(base, "baselines.ols", None))
    names = [name for name in base["baselines"] if name != "ols"]
    assert list(parameters.baselines.active) == names
    assert list(parameters.baselines.build(parameters.task)) == names


def test_at_least_one_baseline_must_be_left(base):
    with pytest.raises(ParameterError, match="baselines: none given"):
        check_parameters(changed(base, "baselines", dict.fromkeys(base["baselines"])))


def test_longer_prompts_than_in_training_are_read_where_the_architecture_takes_them(base):
    longer = changed(base, "evaluation.task", {"num_examples": 48})
    asked = changed(longer, "probing.context_lengths", [11, 47])
    with pytest.raises(ParameterError) as error:
        check_parameters(longer)
    assert str(error.value).startswith("evaluation.task.num_examples: 48 given, and a learner of")
    assert len(str(error.value).splitlines()) == 1
    for name, value in (("model.positions", "none"), ("model.type", "gru")):
        assert check_parameters(changed(asked, name, value)).probing.context_lengths == (11, 47)
    shorter = changed(asked, "evaluation.task", {"num_examples": 6})
    with pytest.raises(ParameterError, match=r"context_lengths: \[47\] .*allowed: 1 to 11"):
        check_parameters(shorter)


def test_all_problems_are_reported_at_once(base):
    broken = changed(changed(base, "task.dim", 0), "training.batch_size", "x")
    with pytest.raises(ParameterError, match=r"(?s)task\.dim.*training\.batch_size"):
        check_parameters(broken)


def test_a_missing_branch_is_named(base):
    with pytest.raises(ParameterError, match="model: this parameter is missing"):
        check_parameters({name: branch for name, branch in base.items() if name != "model"})


def test_one_bad_item_is_one_line(base):
    with pytest.raises(ParameterError) as error:
        check_parameters(changed(base, "probing.targets", ["moment", "weights"]))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=1,task.dim=2", {"seed": 1, "task": {"dim": 2}}),
        ("probing.layers=[0,4],seed=1", {"probing": {"layers": [0, 4]}, "seed": 1}),
        (
            "task.inputs=normal*1+0, normal*3+0,task.dim=2",
            {"task": {"inputs": "normal*1+0, normal*3+0", "dim": 2}},
        ),
        ("task.inputs=normal*[1,2]+0", {"task": {"inputs": "normal*[1,2]+0"}}),
        ("training.compile=auto,", {"training": {"compile": "auto"}}),
    ],
)
def test_on_the_command_line_a_value_keeps_its_commas(text, expected):
    assert split_params(*OPTION, text) == expected


@pytest.mark.parametrize("text", ["seed", "=3", "1,seed=2"])
def test_what_is_no_parameter_on_the_command_line_is_said(text):
    with pytest.raises(click.BadParameter, match="is no parameter and its value; allowed: NAME="):
        split_params(*OPTION, text)
