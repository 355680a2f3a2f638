"""A browser without a window, and one small run for all pages that are looked at in it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.project import copy_project, kedro

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PIPELINES = "model_training,behavioral_comparison,identification,construction"
PATIENCE = 60.0
"""Seconds that a page may take on a machine that is at work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here start a browser, which takes some ten minutes where no GPU draws, and Kedro
    and MLflow, which warn of each other.
    """
    unasked = pytest.mark.skip(reason="some ten minutes: PAGES=1 asks for it")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.xdist_group("browser"))  # one run, one browser
            if "PAGES" not in os.environ:
                item.add_marker(unasked)


@dataclass(frozen=True)
class Browser:
    """A page at a time.

    Attributes:
        driver: Selenium's.
    """

    driver: Any

    def open(self, url: str, width: int = 1600, height: int = 1000, dark: bool = False) -> None:
        """Show a page at this width; the window itself would not be made narrower than 500."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get_log("browser")  # what earlier pages said
        self.driver.get("about:blank")
        self.driver.get(url)

    def wait(self, script: str, seconds: float = PATIENCE) -> Any:
        """What a JavaScript expression gives, once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := self.driver.execute_script(f"return {script}")):
            assert time.monotonic() < deadline, f"{script} in {self.text[:2000]}"
            time.sleep(0.1)
        return found

    def wait_for(self, *texts: str) -> None:
        """Until the page says all of these."""
        for text in texts:
            self.wait(f"document.body.innerText.includes({text!r})")

    @property
    def text(self) -> str:
        """What the page says."""
        return str(self.driver.execute_script("return document.body.innerText"))

    @property
    def errors(self) -> list[str]:
        """What the console says that is an error."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium; where there is none, or no Selenium, the test is skipped."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def small_run(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which conf/test has run once; asked for after the browser, so that none trains
    where there is none.
    """
    project = copy_project(tmp_path_factory.mktemp("seen"))
    settings = ("--params", "registered_model=seen")
    result = kedro(project, "run", "--env", "test", "--pipelines", PIPELINES, *settings)
    assert result.returncode == 0, result.output[-3000:]
    return project


@contextlib.contextmanager
def serving(command: list[str], project: Path, port: int, path: str = "/") -> Iterator[str]:
    """A server in a process of its own until the block ends; gives its address."""
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        command,
        cwd=project,
        env=os.environ | {"DO_NOT_TRACK": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(address + path, timeout=5):
                break
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command} does not answer"
            time.sleep(0.3)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(timeout=30)


def free_port() -> int:
    """A port that nobody listens on; kedro-viz takes none above 49151."""
    for port in range(42_000, 49_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no port is free")


@pytest.fixture(scope="session")
def graph(small_run: Path) -> Iterator[str]:
    """The address of kedro-viz over that run."""
    port = free_port()
    command = [sys.executable, "-m", "kedro", "viz", "run", "--env", "test", "--no-browser"]
    with serving([*command, "--port", str(port)], small_run, port, "/api/main") as address:
        yield address


@pytest.fixture(scope="session")
def mlflow_ui(small_run: Path) -> Iterator[str]:
    """The address of MLflow's pages over that run."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    store = ["--backend-store-uri", f"sqlite:///{small_run}/mlflow.db"]
    with serving([*command, *store], small_run, port, "/health") as address:
        yield address
