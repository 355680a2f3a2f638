"""The `phase_diagram` pipeline as a user runs it, on sweeps whose learners are made up."""

import json
import shutil
from pathlib import Path

import pytest
from support.project import client, copy_project, report, runs
from support.project import kedro as kedro_command
from support.synthetic_sweep import BASELINES, record, write_depth_sweep, write_noise_sweep

from incontext_linear.phase_diagram.config import PhaseDiagramConfig
from incontext_linear.phase_diagram.resampling import MEAN
from incontext_linear.phase_diagram.variants import PhaseDiagramError
from incontext_linear.pipelines.phase_diagram.nodes import select_variants

# Kedro and MLflow run in this process, and warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def kedro(project, *arguments):
    return kedro_command(
        project, "run", "--env", "test", "--pipelines", "phase_diagram", *arguments
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    target = copy_project(tmp_path_factory.mktemp("phase"))
    sweeps = target / "data/test/sweeps"
    write_depth_sweep(sweeps / "depth")
    write_noise_sweep(sweeps / "noise")
    failed = sweeps / "depth/model.num_layers=8/seed=1/variant.json"
    failed.write_text(
        json.dumps(json.loads(failed.read_text()) | {"status": "failed", "error": "lost"})
    )
    shutil.rmtree(sweeps / "depth/model.num_layers=4/seed=1")
    return target


def test_a_sweep_becomes_tables_figures_and_metrics(project):
    result = kedro(project)
    said = result.says
    assert result.returncode == 0, result.output[-3000:]
    assert "model.num_layers=8/seed=1 is not used: its status is 'failed' (lost)" in said
    assert "model.num_layers=4 has no variant of seed 1" in said
    changes = report(project, "depth_transitions").groupby("scope").get_group(MEAN)
    assert [*changes["before"].iloc[:1], *changes["after"].iloc[-1:]] == ["gd_1", "ols"]
    assert len(report(project, "depth_divergences")) == 4 * 4 * 8
    assert report(project, "depth_nearest")["nearest"].isin(BASELINES).all()
    assert report(project, "depth_variants")["used"].sum() == 6
    for figure in ("divergence", "nearest", "heat_map"):
        assert (project / f"data/test/08_reporting/depth_{figure}.png").stat().st_size > 10_000


def test_another_sweep_is_named_on_the_command_line_and_mlflow_has_it_all(project):
    result = kedro(project, "--params", "phase_diagram.sweep=noise")
    assert result.returncode == 0, result.output[-3000:]
    heat_map = report(project, "noise_heat_map")
    assert (heat_map["diagonal"] == heat_map["minimum"]).all()
    run = runs(project)[0]
    assert run.data.params["phase_diagram.sweep"] == "noise"
    assert {"phase.spd.ols", "phase.margin", "phase.diagonal_share"} <= set(run.data.metrics)
    names = {
        Path(artifact.path).name
        for artifact in client(project).list_artifacts(run.info.run_id, "figures")
    }
    assert names == {"noise_divergence.png", "noise_nearest.png", "noise_heat_map.png"}


def test_a_sweep_that_has_not_been_run_is_asked_for_by_its_command(project):
    result = kedro(project, "--params", "phase_diagram.sweep=width")
    assert result.returncode == 1
    assert "make it with `kedro sweep run width --env test`" in result.output


def test_a_sweep_named_in_a_file_that_the_catalog_does_not_see_is_an_error():
    given_records = {"v": lambda: record(model__num_layers=1) | {"sweep": "depth"}}
    with pytest.raises(
        PhaseDiagramError, match=r"is 'noise', but the catalog reads 'depth'; name the sweep"
    ):
        select_variants(given_records, {}, {}, PhaseDiagramConfig(sweep="noise"))


def test_a_sweep_of_which_nothing_is_done_is_an_error_that_says_why_and_what_to_run():
    failed = record(status="failed", error="out of memory", model__num_layers=1) | {
        "sweep": "depth"
    }
    with pytest.raises(PhaseDiagramError) as caught:
        select_variants({"one": lambda: failed}, {}, {}, PhaseDiagramConfig())
    assert "No variant of the sweep 'depth' can be used" in str(caught.value)
    assert "one: its status is 'failed' (out of memory)" in str(caught.value)
    assert "kedro sweep run depth" in str(caught.value)
