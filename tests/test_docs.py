"""The documents: prose fits its columns, links lead somewhere, commands name what exists."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "data/06_models/pretrained/*.md")
    for path in PROJECT.glob(pattern)
)
COLUMNS = 100
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)

PLACEHOLDER = "NAME"
"""Stands for a name that the reader chooses."""

# A history names what no longer exists.
HISTORY = {"CHANGELOG.md"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def prose_lines(text: str) -> list[tuple[int, str]]:
    """Numbered lines outside code blocks, tables and displayed formulas."""
    lines, inside = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        fence = next((mark for mark in ("```", "$$") if stripped.startswith(mark)), None)
        if inside:
            if stripped.endswith(inside):
                inside = None
        elif fence == "```" or (fence and not stripped.removeprefix("$$").endswith("$$")):
            inside = fence
        elif not fence and not stripped.startswith("|"):
            lines.append((number, line))
    return lines


def too_long(line: str) -> bool:
    """Longer than the columns, and not by one unbreakable word such as a link's address."""
    if len(line) <= COLUMNS:
        return False
    if line.lstrip().startswith("!["):
        return False
    last_break = line.rstrip().rfind(" ")
    return last_break > COLUMNS or "](" not in line[last_break:]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in kept}


def commands(text: str) -> list[str]:
    """What the page's code, blocks and spans, would run."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    without = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", without, re.MULTILINE)
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    return lines + indented + re.findall(r"`([^`]+)`", without)


def pipelines() -> set[str]:
    folder = PROJECT / "src/incontext_linear/pipelines"
    return {path.parent.name for path in folder.glob("*/pipeline.py")} | {"__default__"}


def sweeps(environment: str) -> set[str]:
    names = set()
    for name in {"base", environment}:
        path = PROJECT / "conf" / name / "sweeps.yml"
        names |= set(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.exists() else set()
    return names


def test_there_are_pages_to_check():
    assert PROJECT / "README.md" in PAGES
    assert len(PAGES) > 8


@every_page
def test_prose_fits_its_columns(page: Path):
    lines = prose_lines(page.read_text(encoding="utf-8"))
    long = [f"{page.name}:{number}" for number, line in lines if too_long(line)]
    assert not long


@every_page
def test_relative_links_and_images_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    missing = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        known = found.exists()
        if known and anchor and found.suffix == ".md":
            known = anchor in anchors(found.read_text(encoding="utf-8"))
        if not known:
            missing.append(target)
    assert not missing


@every_page
def test_python_modules_that_commands_run_exist(page: Path):
    run = re.compile(r"(?:python[\d.]* (?:-\w+ )*-m|-m) ([a-z_][\w.]*)")
    text = page.read_text(encoding="utf-8")
    modules = {name for line in commands(text) for name in run.findall(line)}
    own = {name for name in modules if name.split(".")[0] in {"incontext_linear", "benchmarks"}}
    if page.name not in HISTORY:
        assert not [name for name in sorted(own) if not module_exists(name)]


def module_exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@every_page
def test_make_targets_exist(page: Path):
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    lines = commands(page.read_text(encoding="utf-8"))
    used = {name for line in lines for name in re.findall(r"^ *make ([a-z]+)", line)}
    assert used <= targets


@pytest.mark.slow
@every_page
def test_kedro_commands_name_pipelines_environments_and_sweeps_that_exist(page: Path):
    unknown = []
    for line in commands(page.read_text(encoding="utf-8")):
        if not re.match(r" *kedro ", line):
            continue
        environment = re.search(r"--env[ =]([\w|]+)", line)
        environment = environment[1] if environment else "base"
        named = re.search(r"--pipelines?[ =]([\w,]+)", line)
        names = named[1].split(",") if named else []
        unknown += [f"pipeline {name}" for name in names if name not in pipelines()]
        if environment != PLACEHOLDER and not (PROJECT / "conf" / environment).is_dir():
            unknown.append(f"environment {environment}")
        sweep = re.search(r"kedro sweep (?:run|status) ([a-z|]+)", line)
        names = sweep[1].split("|") if sweep else []
        known = sweeps(environment)
        unknown += [f"sweep {name}" for name in names if name not in known]
    assert not unknown


@every_page
def test_python_files_that_pages_name_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:src|tests|benchmarks|conf|notebooks)/[\w./-]+)`", text))
    own = re.compile(r"my_package|^conf/local/")  # the reader's
    paths = {path for path in paths if not own.search(path)}
    assert not [path for path in sorted(paths) if not (PROJECT / path).exists()]


def test_every_page_of_the_site_is_in_its_navigation():
    nav = tomllib.loads((PROJECT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    named = re.findall(r"'([\w/-]+\.md)'", repr(nav))
    pages = {str(path.relative_to(PROJECT / "docs")) for path in PROJECT.glob("docs/**/*.md")}
    assert sorted(named) == sorted(pages)


def test_the_readme_is_short():
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("word " * 19, False),
        ("word " * 25, True),
        ("see " + "[a](" + "x" * 120 + ")", False),
        ("![figure](" + "x" * 120 + ")", False),
        ("x" * 60 + " [a](" + "x" * 60 + ") and more words", True),
    ],
)
def test_a_long_line_is_one_that_could_be_broken(line: str, expected: bool):
    assert too_long(line) is expected


def test_tables_code_and_formulas_are_no_prose():
    text = "a\n| b |\n```\nc\n```\n$$d$$\n$$\ne\n$$\nf"
    assert [line for _, line in prose_lines(text)] == ["a", "f"]


def test_unknown_modules_are_found_to_be_missing():
    assert module_exists("benchmarks.predictors")
    assert not module_exists("incontext_linear.no_such_module")
    assert not module_exists("incontext_linear.construction.no.such")
