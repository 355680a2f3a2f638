"""kedro-viz in a real browser: boxes to begin with, what is inside them, and what panels show."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.project import ROOT, copy_project

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
SECONDS = 240
BOXES = {"data_generation", "model_training", "behavioral_comparison", "probing", "identification"}


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Iterator[str]:
    """The address of a kedro-viz that shows the project, with one table on disk."""
    project = copy_project(tmp_path_factory.mktemp("graph"))
    write_curves(project / "data/test/08_reporting/spd_curves.parquet")
    port = next(port for port in range(42_000, 49_000) if is_free(port))  # it takes none above
    command = [sys.executable, "-m", "kedro", "viz", "run", "--env", "test", "--no-browser"]
    with (project / "viz.log").open("wb") as log:
        server = subprocess.Popen([*command, "--port", str(port)], cwd=project, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(10)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def write_curves(path: Path) -> None:
    path.parent.mkdir(parents=True)
    columns = {"mean": [0.5, 0.2], "low": [0.4, 0.1], "high": [0.6, 0.3], "examples_seen": [1, 2]}
    pd.concat(pd.DataFrame(columns).assign(predictor=name) for name in ("ols", "sgd")).to_parquet(
        path
    )


def wait_for(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/main", timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError("kedro-viz did not start")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def opened(browser: Any, address: str, *texts: str) -> str:
    """Open a page, wait until it shows the texts, and return all that it shows."""
    browser.get(address)
    body = (By.TAG_NAME, "body")
    wait = WebDriverWait(browser, SECONDS)
    wait.until(lambda page: all(text in page.find_element(*body).text for text in texts))
    return browser.find_element(*body).text


def drawn(browser: Any) -> set[str]:
    """Names of the nodes in the drawing, once it is there."""
    nodes = (By.CSS_SELECTOR, "g.pipeline-node text")
    WebDriverWait(browser, SECONDS).until(lambda page: page.find_elements(*nodes))
    return {node.get_attribute("textContent") or "" for node in browser.find_elements(*nodes)}


def node_id(address: str, name: str) -> str:
    with urllib.request.urlopen(f"{address}/api/main") as answer:
        found = re.search(rf'"id":"(\w+)","name":"{name}"', answer.read().decode())
    assert found is not None
    return found[1]


def test_the_link_of_make_viz_shows_a_readable_box_for_each_pipeline(graph, browser):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    link = re.search(r"http://127\.0\.0\.1:4141(/\?\S+?)\"", makefile)
    assert link is not None
    shown = opened(browser, graph + link[1], "probing")
    assert drawn(browser) >= BOXES
    assert len(drawn(browser)) < 15
    zoom = re.search(r"(\d+)%", shown)
    assert zoom is not None
    assert int(zoom[1]) > 80


def test_a_pipeline_opens_folded_and_unfolded(graph, browser):
    opened(browser, f"{graph}/?pid=behavioral_comparison&types=task", "behavioral_comparison")
    assert "measure_spd" not in drawn(browser)
    page = f"{graph}/?pid=behavioral_comparison&types=nodes,datasets&expandAllPipelines=true"
    opened(browser, page, "behavioral_comparison")
    WebDriverWait(browser, SECONDS).until(lambda page: "measure_spd" in drawn(page))


def test_the_panel_of_a_node_says_what_it_does(graph, browser):
    node = node_id(graph, "measure_spd")
    opened(
        browser,
        f"{graph}/?pid=behavioral_comparison&sid={node}",
        "SPD(learner, baseline) against examples seen",
    )


def test_a_table_of_curves_is_previewed_as_an_interactive_chart(graph, browser):
    shown = "types=nodes,datasets&expandAllPipelines=true"  # a box that is closed has no panels
    page = f"{graph}/?pid=behavioral_comparison&{shown}&sid={node_id(graph, 'spd_curves')}"
    opened(browser, page, "Spd Curves")
    chart = (By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer .trace")
    WebDriverWait(browser, SECONDS).until(lambda page: len(page.find_elements(*chart)) >= 2)
