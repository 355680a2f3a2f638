"""A project's sweeps are read from its configuration as Kedro would read it."""

import re
import shutil
from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.startup import bootstrap_project

from incontext_linear.config import ModelConfig
from incontext_linear.environment import CONFIG_LOADER_ARGS
from incontext_linear.sweeps.project import Project
from incontext_linear.sweeps.variants import Variant

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def project():
    bootstrap_project(PROJECT)


def variants(project: Project) -> list[Variant]:
    return [v for name in project.names() for v in project.variants(name, project.sweep(name))]


# `make quick` asks about one of them.
@pytest.mark.parametrize(
    "env", ["test", *(pytest.param(env, marks=pytest.mark.slow) for env in ("base", "paper"))]
)
def test_all_that_ship_can_be_run(env):
    assert variants(Project(PROJECT, env))


def test_an_environment_can_take_away_what_goes_along_with_an_axis():
    base, paper = (Project(PROJECT, env).sweep("width") for env in ("base", "paper"))
    assert base.follow
    assert not paper.follow


@pytest.mark.slow
def test_parameters_are_those_of_kedros_loader():
    for variant in variants(Project(PROJECT, "base"))[::7]:
        overrides = variant.overrides | {"seed": variant.seed}
        loader = OmegaConfigLoader(str(PROJECT / "conf"), "base", overrides, **CONFIG_LOADER_ARGS)
        assert type(variant.parameters)(**loader["parameters"]) == variant.parameters


def test_a_parameter_that_is_made_from_another_goes_along_with_it(tmp_path):
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    path = tmp_path / "conf/test/parameters.yml"
    text, found = re.subn(r"width: \d+", "width: ${.num_heads}", path.read_text(), count=1)
    assert found
    path.write_text(text)
    (tmp_path / "conf/test/sweeps.yml").write_text("heads: {axes: {model.num_heads: [2, 8]}}\n")
    project = Project(tmp_path, "test")
    models = [v.parameters.model for v in project.variants("heads", project.sweep("heads"))]
    assert [model.width for model in models if isinstance(model, ModelConfig)] == [2, 8]
