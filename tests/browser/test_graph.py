"""kedro-viz in a real browser: boxes to begin with, what is inside them, and what panels show."""

import re
import urllib.request

from support.project import ROOT

BOXES = {"data_generation", "model_training", "behavioral_comparison", "probing", "identification"}
UNFOLDED = "pid=behavioral_comparison&types=nodes,datasets&expandAllPipelines=true"
NAMES = "[...document.querySelectorAll('g.pipeline-node text')].map((node) => node.textContent)"


def drawn(browser):
    """Names of the nodes in the drawing, once it is there."""
    browser.wait(f"{NAMES}.length > 0")
    return set(browser.driver.execute_script(f"return {NAMES}"))


def node_id(address, name):
    with urllib.request.urlopen(f"{address}/api/main") as answer:
        found = re.search(rf'"id":"(\w+)","name":"{name}"', answer.read().decode())
    assert found is not None
    return found[1]


def test_the_link_of_make_viz_shows_a_readable_box_for_each_pipeline(graph, browser):
    (link,) = re.findall(r"http://127\.0\.0\.1:4141(/\?\S+?)\"", (ROOT / "Makefile").read_text())
    browser.open(graph + link)
    assert drawn(browser) >= BOXES
    assert len(drawn(browser)) < 15
    (zoom,) = re.findall(r"(\d+)%", browser.text)
    assert int(zoom) > 80


def test_a_pipeline_opens_folded_and_unfolded(graph, browser):
    browser.open(f"{graph}/?pid=behavioral_comparison&types=task")
    assert "measure_spd" not in drawn(browser)
    browser.open(f"{graph}/?{UNFOLDED}")
    browser.wait(f"{NAMES}.includes('measure_spd')")


def test_the_panel_of_a_node_says_what_it_does(graph, browser):
    browser.open(f"{graph}/?pid=behavioral_comparison&sid={node_id(graph, 'measure_spd')}")
    browser.wait_for("SPD(learner, baseline) against examples seen")


def test_a_table_of_curves_is_previewed_as_an_interactive_chart(graph, browser):
    browser.open(f"{graph}/?{UNFOLDED}&sid={node_id(graph, 'spd_curves')}")
    browser.wait("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length >= 2")
