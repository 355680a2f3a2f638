"""Pipelines are boxes: a namespace for their nodes, and for nothing else."""

import importlib
import pkgutil

import pytest
from kedro.pipeline import Pipeline, node
from kedro.pipeline.preview_contract import TextPreview

from incontext_linear import pipelines
from incontext_linear.pipelines import box, merge

NAMES = [module.name for module in pkgutil.iter_modules(pipelines.__path__)]


def created(name: str) -> Pipeline:
    return importlib.import_module(f"{pipelines.__name__}.{name}").create_pipeline()


@pytest.mark.parametrize("name", NAMES)
def test_every_node_lies_in_a_box_and_the_pipelines_own_in_its_own(name):
    pipeline = created(name)
    assert {node.namespace for node in pipeline.nodes} <= set(NAMES)
    assert any(node.namespace == name for node in pipeline.nodes)
    assert all(name in node.tags for node in pipeline.nodes)  # so that --tags selects it whole


@pytest.mark.parametrize("name", NAMES)
def test_no_dataset_or_parameter_is_renamed_by_its_box(name):
    prefixes = tuple(f"{kind}{box_name}." for kind in ("", "params:") for box_name in NAMES)
    # A parameter below a branch of the same name, such as params:phase_diagram.sweep, is none.
    datasets = [d for d in created(name).datasets() if not d.startswith("params:")]
    assert not [dataset for dataset in datasets if dataset.startswith(prefixes)]


@pytest.mark.parametrize("name", NAMES)
def test_every_node_says_what_it_does(name):
    said = {}
    for part in created(name).nodes:
        preview = part.preview()
        assert isinstance(preview, TextPreview), part.name
        said[part.name] = preview.content
    short = {node: text for node, text in said.items() if len(text.split()) < 4 or text[-1] != "."}
    assert not short


def test_a_part_of_probing_is_chosen_with_the_prompts_it_needs_and_no_more():
    default = merge(map(created, NAMES))
    layerwise = {
        node.name.partition(".")[2] for node in default.only_nodes_with_tags("layerwise").nodes
    }
    assert layerwise == {
        "draw_probing_prompts",
        "select",
        "collect_hidden_states",
        "measure_progress",
        "report_progress_metrics",
        "draw_progress",
    }


def test_nodes_that_pipelines_share_have_the_tags_of_all_of_them():
    def one() -> int:
        return 1

    shared = box("shared", [node(one, None, "x", name="one")])
    first = Pipeline([shared], tags="first")
    second = Pipeline(
        [shared, box("own", [node(lambda x: x, "x", "y", name="two")])], tags="second"
    )
    merged = {node.name: node.tags for node in merge([first, second]).nodes}
    assert merged == {"shared.one": {"shared", "first", "second"}, "own.two": {"own", "second"}}
