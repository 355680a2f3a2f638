"""The Kedro pipelines: thin wiring around the library.

Each is one box in kedro-viz, which opens on a click: kedro-viz folds by namespace. The namespace is
part of the nodes' names (``probing.train_probes``) and of no dataset's or parameter's.
"""

import inspect
import warnings
from collections.abc import Iterable
from functools import partial

from kedro.pipeline import Node, Pipeline
from kedro.pipeline.preview_contract import TextPreview

OF_SEVERAL = ("phase_diagram", "across_seeds", "task_diversity", "training_dynamics")
"""Pipelines that read what other commands make, and that no single run can make (a finished
sweep), or that train several learners.
"""
ON_REQUEST = (*OF_SEVERAL, "alignment")
"""Those that are no part of the default run; the last takes minutes."""


def box(name: str, nodes: Iterable[Node | Pipeline]) -> Pipeline:
    """A pipeline whose nodes have its name as their tag and namespace.

    In kedro-viz the side panel of a node shows what its function's docstring says first.
    """
    parts = Pipeline(nodes, namespace=name, tags=name, prefix_datasets_with_namespace=False)
    return Pipeline([_described(part) for part in parts.nodes])


def _described(part: Node) -> Node:
    with warnings.catch_warnings():  # Kedro says once a process that previews are experimental
        warnings.filterwarnings("ignore", "The 'preview_fn' feature is experimental")
        return Node(
            part.func,
            part._inputs,
            part._outputs,
            name=part._name,
            tags=part.tags,
            confirms=part.confirms,
            namespace=part.namespace,
            preview_fn=partial(what_it_does, part),
        )


def what_it_does(part: Node) -> TextPreview:
    """The first paragraph of the docstring of a node's function, in one line."""
    said = inspect.getdoc(part.func) or ""
    return TextPreview(" ".join(said.split("\n\n")[0].replace("`", "").split()))


def merge(pipelines: Iterable[Pipeline]) -> Pipeline:
    """The sum of pipelines that share nodes: a node has the tags that it has in any of them.

    Kedro's own sum keeps the tags of one of them.
    """
    nodes: dict[str, Node] = {}
    for pipeline in pipelines:
        for node in pipeline.nodes:
            known = nodes.get(node.name, node)
            nodes[node.name] = known.tag(node.tags)
    return Pipeline(nodes.values())
