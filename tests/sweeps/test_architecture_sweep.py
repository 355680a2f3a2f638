"""The sweep that ships for architectures: one task, about equal parameters, longer prompts."""

from pathlib import Path

import pytest
from kedro.framework.startup import bootstrap_project

from incontext_linear.learner.registry import build_learner
from incontext_linear.predictors import OptimalStep
from incontext_linear.sweeps.project import Project
from incontext_linear.sweeps.variants import group

PROJECT = Path(__file__).parents[2]
NAMES = ["transformer", "bare_transformer", "looped", "linear_attention", "gru", "lstm", "delta"]


@pytest.fixture(scope="module")
def variants():
    bootstrap_project(PROJECT)
    project = Project(PROJECT, "base")
    return project.variants("architecture", project.sweep("architecture"))


@pytest.mark.slow
def test_every_architecture_has_five_seeds_and_one_task(variants):
    assert list(dict.fromkeys(v.axes["architecture"] for v in variants)) == NAMES
    assert len(variants) == 5 * len(NAMES)
    assert len({v.parameters.task for v in variants}) == 1


def test_architectures_have_about_equal_numbers_of_parameters(variants):
    sizes = {}
    for variant in variants:
        task, model = variant.parameters.task, variant.parameters.model
        network = build_learner(task.dim, task.num_examples, model)
        sizes[variant.axes["architecture"]] = sum(p.numel() for p in network.parameters())
    assert sizes.pop("linear_attention") == 18
    assert min(sizes.values()) >= 6200
    assert max(sizes.values()) <= 7300


def test_those_without_learned_positions_are_asked_about_longer_prompts(variants):
    for variant in variants:
        asked = variant.parameters.evaluation.over(variant.parameters.task).num_examples
        assert asked == (20 if variant.parameters.model.any_length else 10)


def test_seeds_train_in_stacks_where_the_architecture_allows_it(variants):
    sizes = [
        (members[0].axes["architecture"], len(members)) for members in group(variants, stacked=True)
    ]
    assert {name for name, size in sizes if size == 1} == {"gru", "lstm"}
    assert {name for name, size in sizes if size == 5} == set(NAMES) - {"gru", "lstm"}


def test_the_optimal_step_is_a_baseline_of_the_sweeps_own_task(variants):
    parameters = variants[0].parameters
    built = parameters.baselines.build(parameters.task)["optimal_step"]
    assert built == OptimalStep(parameters.task)


@pytest.mark.slow
def test_the_smallest_environment_runs_it_with_fewer_seeds():
    bootstrap_project(PROJECT)
    project = Project(PROJECT, "test")
    found = project.variants("architecture", project.sweep("architecture"))
    assert len(found) == 2 * len(NAMES)
    assert {v.parameters.training.num_steps for v in found} == {4}
