"""A runner for two nodes at a time, each computed in a process of its own.

Kedro's `ParallelRunner` has its processes load and save as well, outside of the thread in which the
MLflow run is open, so metrics and tables are lost. Here a process is given a node's inputs and
gives its outputs back; loading, saving and all hooks stay with the run. Every process computes on
one thread, so results do not depend on how many nodes run at once: they are those of
``OMP_NUM_THREADS=1 kedro run``.
"""

import logging
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from kedro.framework.project import LOGGING
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from pluggy import PluginManager

from incontext_linear.runs.interrupts import uninterrupted
from incontext_linear.runs.worker import begin, compute

logger = logging.getLogger(__name__)

LONG = "long"
"""The tag of nodes that are begun before others, so that none of them is left to the end."""


class SideBySideRunner(SequentialRunner):
    """Run nodes whose inputs are there in worker processes, `LONG` ones first, then those that most
    others wait for; where there is a GPU, one after the other in this process.

    Args:
        is_async: refused by the session, as for every runner.
        num_workers: how many nodes are computed at once.

    Raises:
        ValueError: if ``num_workers`` is below 1.
    """

    def __init__(self, is_async: bool = False, num_workers: int = 2):
        super().__init__(is_async=is_async)
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers}; allowed: 1 or more")
        self.num_workers = num_workers
        self._context = multiprocessing.get_context("forkserver")
        if not torch.cuda.is_available():
            _start_server(self._context)

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        hook_manager: PluginManager,
        run_id: str | None = None,
    ) -> None:
        if torch.cuda.is_available():  # nodes would only take turns, and hand over its memory
            logger.info("One node at a time, since there is a GPU")
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self.num_workers, self._context, begin, (dict(LOGGING),))
        done: set[Node] = set()
        try:
            self._run_in(pool, _Calls(catalog, hook_manager, run_id), pipeline, catalog, done)
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, Exception):
                self._suggest_resume_scenario(pipeline, done, catalog)
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_in(
        self,
        pool: ProcessPoolExecutor,
        calls: "_Calls",
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        done: set[Node],
    ) -> None:
        needed = pipeline.node_dependencies
        waiting = _number_waiting(pipeline)
        todo = sorted(
            pipeline.nodes, key=lambda node: (LONG in node.tags, waiting[node]), reverse=True
        )
        load_counts = Counter(name for node in todo for name in node.inputs)
        used = set(load_counts)  # _release_datasets counts down
        running: dict[Future, tuple[Node, dict[str, Any]]] = {}

        def begin_those_that_can() -> None:
            for node in [node for node in todo if needed[node] <= done]:
                if len(running) == self.num_workers:
                    break
                todo.remove(node)
                inputs = calls.before(node)
                prepare = calls.preparations(node, used)
                with uninterrupted():  # a process that is half started is nobody's, and stays
                    future = pool.submit(compute, node, inputs, prepare)
                running[future] = node, inputs

        while todo or running:
            begin_those_that_can()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node, inputs = running.pop(future)
                begin_those_that_can()  # others, while this one's outputs are saved
                calls.after(node, inputs, future)
                done.add(node)
                self._release_datasets(node, catalog, load_counts, pipeline)


class _Calls:
    """What Kedro does before and after a node's function, hooks included."""

    def __init__(self, catalog: CatalogProtocol, manager: PluginManager, run_id: str | None):
        self.catalog, self.hook = catalog, manager.hook
        self.facts = {"catalog": catalog, "is_async": False, "run_id": run_id}

    def before(self, node: Node) -> dict[str, Any]:
        """Load a node's inputs."""
        inputs = {}
        for name in node.inputs:
            self.hook.before_dataset_loaded(dataset_name=name, node=node)
            inputs[name] = self.catalog.load(name)
            self.hook.after_dataset_loaded(dataset_name=name, data=inputs[name], node=node)
        changed = self.hook.before_node_run(node=node, inputs=dict(inputs), **self.facts)
        for more in changed or ():
            inputs |= more or {}
        return inputs

    def preparations(self, node: Node, used: Set[str]) -> dict[str, Callable[[Any], Any]]:
        """Which outputs a worker can make ready to be saved, and how: those whose dataset has a
        method ``in_worker``, and that no node reads.
        """
        found = {}
        for name in node.outputs:
            in_worker = getattr(self.catalog.get(name), "in_worker", None)
            if name not in used and in_worker is not None:
                found[name] = in_worker()
        return found

    def after(self, node: Node, inputs: dict[str, Any], future: Future) -> None:
        """Save its outputs.

        Raises:
            Exception: what the node's function raised.
        """
        try:
            outputs = future.result()
        except Exception as error:
            self.hook.on_node_error(error=error, node=node, inputs=inputs, **self.facts)
            raise
        self.hook.after_node_run(node=node, inputs=inputs, outputs=outputs, **self.facts)
        for name, data in outputs.items():
            self.hook.before_dataset_saved(dataset_name=name, data=data, node=node)
            self.catalog.save(name, data)
            self.hook.after_dataset_saved(dataset_name=name, data=data, node=node)


def _start_server(context: ForkServerContext) -> None:
    """Start the process that workers are forked from, while Kedro and MLflow still prepare the run:
    it takes seconds to import, once, what nodes need.
    """
    package, folder = __name__.partition(".")[0], Path(__file__).parents[1] / "pipelines"
    nodes = [f"{package}.pipelines.{one.parent.name}.nodes" for one in folder.glob("*/nodes.py")]
    context.set_forkserver_preload(["__main__", begin.__module__, *nodes])
    # What is blocked stays so in it: a terminal's Ctrl-C would interrupt its imports. Starting the
    # tracker of resources unblocks it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _number_waiting(pipeline: Pipeline) -> dict[Node, int]:
    """How many nodes wait for each, directly or through others."""
    needed = pipeline.node_dependencies
    behind: dict[Node, set[Node]] = {node: set() for node in pipeline.nodes}
    for node in reversed(pipeline.nodes):
        for earlier in needed[node]:
            behind[earlier] |= behind[node] | {node}
    return {node: len(others) for node, others in behind.items()}
