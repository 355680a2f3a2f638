"""Commands that cannot be carried out: one line that says why, and nothing is written."""

import os
import subprocess
import sys

import click
import mlflow
import pytest
from click.testing import CliRunner
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner
from support.project import copy_project, forget_runs, snapshot

from incontext_linear.cli import run
from incontext_linear.runs.locks import LOCK_FILE
from incontext_linear.runs.session import ProjectSession

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


PROMPTS = {
    "pipeline_names": ["data_generation"],
    "node_names": ["data_generation.draw_probing_prompts"],
}


@pytest.fixture(autouse=True)
def forget():
    yield
    forget_runs()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("refusals"))
    for name, text in {
        "broken": "task: [1,\nmodel: {",
        "unknown": "task: {dim: '${globals:no_such_key}'}",
        "tagged": "task: !!python/object/apply:os.system ['touch made']",
    }.items():
        folder = project / "conf" / name
        folder.mkdir()
        (folder / "parameters.yml").write_text(text)
    (project / "conf/swept").mkdir()
    (project / "conf/swept/parameters.yml").write_text("variant: {folder: data/elsewhere}")
    before = os.getcwd()
    os.chdir(project)
    bootstrap_project(project)
    yield project
    os.chdir(before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env", "tset"], "--env tset: there is no folder"),
        (["--env", "broken"], "the parameters in"),
        (["--env", "unknown"], "no_such_key"),
        (["--env", "tagged"], "could not determine a constructor"),
        (["--env", "swept"], "variant: set by `kedro sweep run`"),
        (["--env", "test", "--nodes", "trian"], "['trian']"),
        (["--env", "test", "--tags", "no_such_tag"], "(given tags: no_such_tag)"),
        (["--env", "test", "--from-nodes", "trian"], "['trian']"),
        (["--env", "test", "--to-outputs", "lerner"], "lerner"),
        (["--env", "test", "--namespaces", "nowhere"], "nowhere"),
        (["--env", "test", "--pipelines", "probign"], "there is no pipeline 'probign'; allowed"),
        (["--env", "test", "--runner", "ParallelRunner"], "--runner ParallelRunner: nodes would"),
        (["--env", "test", "--runner", "ThreadRunner"], "allowed: SequentialRunner"),
        (["--env", "test", "--runner", "no.such.Runner"], "--runner no.such.Runner: nodes would"),
        (["--env", "test", "--load-versions", "learner"], "'load_versions' to be"),
        (["--env", "test", "--async"], "--async: files would be saved in threads of their own"),
        (["--env", "test", "--runner-params", "is_async=True"], "--async: files would be saved"),
        (["--env", "test", "--params", "variant.folder=/tmp"], "variant: set by `kedro sweep run`"),
        (["--env", "test", "--params", "task.dim=-3"], "task.dim: input should be greater than 0"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_answered_in_one_line(project, arguments, says):
    before = snapshot(project)
    result = CliRunner().invoke(run, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert says in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.output.rstrip().count("\n", result.output.index(line)) <= 1
    assert snapshot(project) == before


@pytest.mark.parametrize(
    "runner", [ParallelRunner(), ThreadRunner(), SequentialRunner(is_async=True)]
)
def test_a_program_too_is_refused_a_runner_that_loses_results(project, runner):
    with (
        ProjectSession.create(project, env="test") as session,
        pytest.raises(click.ClickException, match="allowed"),
    ):
        session.run(pipeline_names=["data_generation"], runner=runner)


@pytest.mark.parametrize("kind", [ProjectSession, KedroSession])
def test_a_run_in_a_notebook_respects_the_lock_and_takes_it(project, kind):
    lock = project / "data/test" / LOCK_FILE
    hold = (
        "import sys; from pathlib import Path; from incontext_linear.runs.locks import exclusive\n"
    )
    hold += "with exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command, pipe = [sys.executable, "-c", hold, str(lock)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"held\n"
        says = rf"data/test is in use by .*process {process.pid} on"
        refused = pytest.raises(click.ClickException, match=says)
        with kind.create(project, env="test") as session, refused:
            session.run(**PROMPTS)
        process.kill()
    with kind.create(project, env="test") as session:
        session.run(**PROMPTS)
    assert not lock.exists()
    assert mlflow.active_run() is None  # or the next run would be mixed into this one
