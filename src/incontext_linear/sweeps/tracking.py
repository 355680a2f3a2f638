"""A sweep in MLflow: one parent run for each sweep and environment, opened again when the sweep
goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from incontext_linear.sweeps.state import SweepFolder
from incontext_linear.tracking import kill_open_runs


class ParentRun:
    """The sweep's own run.

    Args:
        config: kedro-mlflow's, set up.
        run_id: of the run.
    """

    def __init__(self, config: KedroMlflowConfig, run_id: str):
        self._config, self.run_id = config, run_id
        self._client: MlflowClient = config.server._mlflow_client
        self.status = "FINISHED"

    def end(self) -> None:
        """End the run with its status, and as killed the runs of variants that nobody ended."""
        kill_open_runs(self._config, self.run_id)
        self._client.set_terminated(self.run_id, self.status)


@contextmanager
def parent_run(
    config: KedroMlflowConfig, folder: SweepFolder, name: str, tags: dict[str, Any]
) -> Iterator[ParentRun]:
    """Open the sweep's run, the one that its folder names if that still exists.

    Args:
        config: kedro-mlflow's, set up.
        folder: the sweep's folder, which keeps the run's id.
        name: of the run.
        tags: the sweep's facts; they may differ from those of the last time.

    Yields:
        The run; its ``status`` is what it ends with, KILLED if the block is interrupted.
    """
    client: MlflowClient = config.server._mlflow_client
    run_id = folder.read_parent_run()
    try:
        found = run_id is not None and client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:  # another tracking server, or a database that was removed
        found = False
    if not found:
        experiment = config.tracking.experiment._experiment.experiment_id
        run_id = client.create_run(experiment, run_name=name).info.run_id
        folder.write_parent_run(run_id)
    client.update_run(run_id, status="RUNNING")
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    run = ParentRun(config, run_id)
    kill_open_runs(config, run_id)  # of a driver that was killed itself
    try:
        yield run
    except KeyboardInterrupt:
        run.status = "KILLED"
        raise
    except BaseException:
        run.status = "FAILED"
        raise
    finally:
        run.end()
