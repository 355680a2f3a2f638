"""The Kedro pipelines: thin wiring around the library.

Each is one box in kedro-viz, which opens on a click: kedro-viz folds by namespace. The namespace is
part of the nodes' names (``probing.train_probes``) and of no dataset's or parameter's.
"""

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline


def box(name: str, nodes: Iterable[Node | Pipeline]) -> Pipeline:
    """A pipeline whose nodes have its name as their tag and namespace."""
    return Pipeline(nodes, namespace=name, tags=name, prefix_datasets_with_namespace=False)


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
