"""The report as the end of a run: a Kedro hook that shows what this run wrote, and nothing else.

It is a hook and no node: a node would read its tables from the data folder, where those of another
run may lie.
"""

import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from incontext_linear.config import flatten, resolve_device
from incontext_linear.environment import data_folder
from incontext_linear.logged_learner import installed_version
from incontext_linear.parameters import Parameters, check_parameters
from incontext_linear.tracking import end_open_runs, git_commit, parameter_fields

logger = logging.getLogger(__name__)

REPORT = "run_report"
"""The catalog's entry of the page."""
LEARNER = "learner"
PACKAGES = ("incontext-linear", "torch", "numpy", "kedro", "kedro-mlflow", "mlflow", "plotly")


class Written(Mapping[str, Any]):
    """The datasets that a run has written, each loaded when it is asked for.

    Args:
        catalog: of the run.
        names: what it has saved.
    """

    def __init__(self, catalog: DataCatalog, names: set[str]):
        self._catalog, self._names = catalog, names

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._catalog.load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Reporting:
    """Notes what a run writes and how long its parts take; at its end makes the page."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read the parameters, which `ProjectChecks` has found valid."""
        self._project = context.project_path
        self._data = data_folder(context.project_path, context.config_loader)
        self._parameters: Parameters = check_parameters(context.config_loader["parameters"])

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Begin with nothing written."""
        self._written: set[str] = set()
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._node_began: dict[str, float] = {}
        self._began = time.perf_counter()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Note a dataset of this run."""
        self._written.add(dataset_name)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock, and the count of its GPU memory."""
        self._node_began[node.name] = time.perf_counter()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Add the node's time to its part's, and note the most GPU memory that any node took."""
        part = node.namespace or node.name
        spent = time.perf_counter() - self._node_began[node.name]
        self._seconds[part] = self._seconds.get(part, 0.0) + spent
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated() / 1e9
            self._peaks[part] = max(self._peaks.get(part, 0.0), peak)

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Make the page and name it, unless this is one of a sweep's many runs."""
        self._log_costs()
        if self._parameters.variant:
            return
        try:
            answers = self._make(run_params, pipeline, catalog)
        except BaseException:
            end_open_runs("FAILED")
            raise
        for answer in answers:
            logger.info("Verdict: %s.", answer.partition(". ")[0].rstrip("."))
        page = catalog.get(REPORT)
        logger.info("Report: %s", getattr(page, "_filepath", REPORT))
        logger.info("`make mlflow` shows this run beside others")

    def _make(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> list[str]:
        """Save the page; gives its chapters' answers in words."""
        from incontext_linear.report import Results, RunFacts, render

        given = self._parameters
        learner = catalog.load(LEARNER) if LEARNER in pipeline.datasets() else None
        results = Results(
            Written(catalog, self._written),
            given.evaluation.over(given.task),
            learner.config if learner else given.model,
            given.seed,
            learner,
        )
        facts = RunFacts(
            command_line(run_params),
            root=os.path.relpath(self._project, self._data / "08_reporting"),
            facts=self._facts(),
            versions={"Python": platform.python_version()}
            | {name: installed_version(name) or "not installed" for name in PACKAGES},
            seconds={name: round(spent, 1) for name, spent in self._seconds.items()},
            parameters=parameter_fields(pipeline, catalog),
        )
        page = render(results, facts)
        catalog.save(REPORT, page.html)
        return page.answers

    def _facts(self) -> dict[str, str]:
        import mlflow

        run = mlflow.active_run()
        device = resolve_device(self._parameters.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "commit": git_commit(Path(self._project)),
            "seed": str(self._parameters.seed),
            "MLflow run": f"{run.info.run_name} ({run.info.run_id})" if run else "none",
            "device": f"{device.type}: {name}, {torch.get_num_threads()} threads of "
            f"{os.cpu_count()} processors",
            "seconds": f"{time.perf_counter() - self._began:.0f}, this page left out",
        }

    def _log_costs(self) -> None:
        """The time of the run and of its parts, and their GPU memory in GB, as metrics."""
        import mlflow

        if self._peaks:
            peaks = ", ".join(f"{name} {peak:.1f}" for name, peak in self._peaks.items())
            logger.info("Peak GPU memory in GB: %s", peaks)
        if mlflow.active_run():
            total = {"run/seconds": time.perf_counter() - self._began}
            parts = {f"run/seconds.{name}": spent for name, spent in self._seconds.items()}
            peaks = {f"run/gpu_gigabytes.{name}": peak for name, peak in self._peaks.items()}
            mlflow.log_metrics(total | parts | peaks)


def command_line(run_params: Mapping[str, Any]) -> str:
    """``kedro run`` with what was given of its options."""
    names = run_params.get("pipeline_names") or [run_params.get("pipeline_name")]
    chosen = ",".join(name for name in names if name and name != "__default__")
    changed = run_params.get("runtime_params") or run_params.get("extra_params") or {}
    parameters = ",".join(f"{name}={value}" for name, value in flatten(dict(changed)).items())
    options = {"env": run_params.get("env"), "pipelines": chosen, "params": parameters}
    options |= {
        option: ",".join(run_params.get(key) or ())
        for option, key in (("tags", "tags"), ("nodes", "node_names"))
    }
    return " ".join(
        ["kedro run", *(f"--{name} {value}" for name, value in options.items() if value)]
    )
