"""The page: chapters, the facts of the run and definitions, rendered into one HTML file."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from incontext_linear.figures.interactive import dark_color
from incontext_linear.report.chapters import CHAPTERS, headline
from incontext_linear.report.content import Chapter, Part, Results
from incontext_linear.report.definitions import DEFINITIONS

QUESTION = "Which learning algorithm does this network run when it learns in context?"


@dataclass(frozen=True)
class RunFacts:
    """How the run was made.

    Attributes:
        name: which pipelines and settings.
        root: the project's folder as seen from the page, for links to the documentation.
        facts: name → value: commit, seeds, hardware, MLflow's run, ….
        versions: package → version.
        seconds: part → wall-clock seconds.
        parameters: dotted name → value.
    """

    name: str
    root: str = "../.."
    facts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page as HTML, and what its chapters answer."""

    html: str
    answers: list[str]


def render(results: Results, run: RunFacts) -> Page:
    """The page as one self-contained HTML file, with plotly.js inlined once."""
    from plotly.offline import get_plotlyjs

    made = [(part, part.make(results)) for part in CHAPTERS]
    chapters = [(part, chapter) for part, chapter in made if chapter is not None]
    not_run = [part for part, chapter in made if chapter is None and part.always]
    answer, numbers = headline([chapter for _, chapter in chapters])
    figures = _figures(chapters)
    html = _template().render(
        question=QUESTION,
        answer=answer.words if answer else None,
        numbers=numbers,
        chapters=chapters,
        not_run=not_run,
        results=results,
        run=run,
        definitions={key: DEFINITIONS[key] for key in _used(chapters)},
        figures=figures,
        dark=_dark_colors(figures.values()),
        plotly=get_plotlyjs(),
    )
    return Page(html, [found.answer.words for _, found in chapters if found.answer])


@cache
def _template():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("incontext_linear.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2")


def _figures(chapters: Sequence[tuple[Part, Chapter]]) -> dict[str, str]:
    """Anchor → the figure as JSON; ``<`` is escaped, so that no text can end the script."""
    return {
        f"{part.key}-{index}": str(shown.figure.to_json()).replace("<", "\\u003c")
        for part, chapter in chapters
        for index, shown in enumerate(chapter.shown)
        if shown.figure is not None
    }


def _dark_colors(figures: Iterable[str]) -> str:
    """Every colour of the figures with the one that a dark page shows, as JSON."""
    found = {color.lower() for text in figures for color in re.findall(r"#[0-9a-fA-F]{6}", text)}
    return json.dumps({color: dark_color(color) for color in sorted(found)})


def _used(chapters: Sequence[tuple[Part, Chapter]]) -> list[str]:
    shown = [item.definition for _, chapter in chapters for item in chapter.shown]
    return list(dict.fromkeys(shown))
