"""The page that tells a run: what it holds, what it says is missing, and that it stands alone."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.report import (
    CHAPTERS,
    Answer,
    Chapter,
    Number,
    Results,
    RunFacts,
    headline,
    render,
)
from incontext_linear.report.definitions import DEFINITIONS

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Anchors, references and text of a page, its scripts left out."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[str] = []
        self.text, self._inside = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            if name in ("src", "href"):
                self.references.append(value or "")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


def tables() -> dict:
    """Least squares is at 0.01 from the learner after every number of examples, ridge at 1."""
    rows = [
        {"predictor": name, "examples_seen": k, "mean": level, "low": level / 2, "high": 2 * level}
        for name, level in (("ridge_1", 1.0), ("ols", 0.01))
        for k in range(6)
    ]
    spd = pd.DataFrame(rows).assign(diverged=False)
    ys = torch.ones(8, 6)
    return {
        "spd_curves": spd,
        "ilwd_curves": spd,
        "evaluation_prompts": {"xs": torch.ones(8, 6, 2), "ys": ys},
    }


def results(**more) -> Results:
    task, model = TaskConfig(dim=2, num_examples=6), ModelConfig(num_layers=1, num_heads=1, width=4)
    return Results(tables() | more, task, model, seed=3)


@pytest.fixture(scope="module")
def html():
    facts = RunFacts("kedro run --env test", parameters={"task.dim": "<b>2</b>"})
    return render(results(), facts).html


def test_the_page_names_the_nearest_algorithm_with_its_interval(html):
    text = " ".join(Page(html).text.split())
    assert "Which learning algorithm" in text
    assert "nearest to least squares (1 % of" in text or "nearest to ols (1 % of" in text
    assert (
        "1 [0.5, 2] % SPD to least squares at k = 4, share of Var(y) (interval over prompts)"
        in text
    )


def test_longer_prompts_than_in_training_have_a_table_and_a_mark():
    task = TaskConfig(dim=2, num_examples=3)
    config = ModelConfig(num_layers=1, num_heads=1, width=4, positions="none")
    learner = Learner(Transformer(task.dim, task.num_examples, config), task)
    html = render(replace(results(), learner=learner), RunFacts("kedro run")).html
    text = " ".join(Page(html).text.split())
    rows = text[text.index("Longer prompts than in training") :]
    for k, lengths in ((2, 1), (5, 2)):  # of n = 3: where training ends, and the prompts
        assert re.search(rf"{k}\s*{lengths}\s*least squares\s*1 \[0\.5, 2\]", rows)
    assert "trained up to here" in html
    assert "trained up to here" not in render(results(), RunFacts("kedro run")).html


def test_the_page_needs_nothing_but_itself(html):
    page = Page(html)
    local = [ref for ref in page.references if ref.startswith("#")]
    assert {ref.removeprefix("#") for ref in local} <= page.ids
    others = [ref for ref in page.references if not ref.startswith(("#", "data:"))]
    assert others
    assert all(ref.startswith("../../docs/") for ref in others)
    assert html.count("plotly.js v") == 1
    assert len(html) < 8e6


def test_what_is_given_is_written_as_text(html):
    assert "<b>2</b>" not in html
    assert "&lt;b&gt;2&lt;/b&gt;" in html


def test_what_was_not_run_is_said_with_the_command_that_makes_it(html):
    text = " ".join(Page(html).text.split())
    missing = text[text.index("Not run") : text.index("Behaviour", text.index("Not run"))]
    for pipeline in ("identification", "probing", "construction"):
        assert f"kedro run --pipelines {pipeline}" in missing
    assert "phase_diagram" not in text  # what reads a sweep is not missed
    assert "kedro run --pipelines behavioral_comparison" not in text


def test_every_chapter_leaves_itself_out_where_its_tables_are_missing():
    nothing = Results({}, TaskConfig(), ModelConfig(), 0)
    assert [part.make(nothing) for part in CHAPTERS] == [None] * len(CHAPTERS)


def test_a_run_that_measured_nothing_says_so():
    html = render(Results({}, TaskConfig(), ModelConfig(), 0), RunFacts("kedro run")).html
    assert "This run ran nothing that answers the question." in html
    assert len(html) < 1e5  # without figures no program that draws them


def test_a_name_of_the_users_own_cannot_end_the_script():
    own = pd.DataFrame({"predictor": "</script><script>alert(1)", "examples_seen": [1, 2, 3, 4]})
    spd = own.assign(mean=1.0, low=0.5, high=2.0, diverged=False)
    html = render(results(spd_curves=spd), RunFacts("kedro run")).html
    assert "<script>alert(1)" not in html


def test_the_top_tells_the_strongest_answer_and_of_each_chapter_its_first_number():
    first, second = Chapter(answer=Answer("weak", 1)), Chapter(answer=Answer("strong", 2))
    numbers = [tuple(Number(f"{name}{place}", 1.0) for place in range(4)) for name in "ab"]
    chapters = [
        Chapter(answer=chapter.answer, numbers=own)
        for chapter, own in zip((first, second), numbers, strict=True)
    ]
    answer, chosen = headline(chapters)
    assert answer is not None
    assert answer.words == "strong"
    assert [number.label for number in chosen] == ["a0", "b0", "a1", "b1", "a2"]


def test_every_definition_names_a_page_that_exists():
    assert all((ROOT / definition.page).is_file() for definition in DEFINITIONS.values())


def test_dark_pages_have_a_colour_for_every_colour_of_the_figures(html):
    (colors,) = re.findall(r"const darkColors = (\{.*?\});", html)
    assert "#0072b2" in colors


def test_variables_that_are_found_are_told_with_place_and_rank_and_the_others_are_not():
    cells = [(1, "query", "found"), (1, "weights", "not found"), (2, "query", "not found")]
    rows = [
        {
            "layer": layer, "positions": "query", "model": model, "verdict": verdict, "rank": 2,
            "share": 0.95, "low": 0.9, "high": 0.99, "specific_low": 0.8, "random": -0.1,
            "control": 0.1,
        }
        for layer, model, verdict in cells
    ]  # fmt: skip
    page = render(results(alignment_verdicts=pd.DataFrame(rows)), RunFacts("kedro run"))
    (said,) = [answer for answer in page.answers if answer.startswith("States hold")]
    assert said.endswith("that is used: x′ (the query's token, layer 1; rank 2).")
    text = " ".join(Page(page.html).text.split())
    assert "the query's token, layer 1x′20.95 [0.9, 0.99]0.800.10" in text  # a row's cells
    none = pd.DataFrame(rows).assign(verdict="not found")
    answers = render(results(alignment_verdicts=none), RunFacts("kedro run")).answers
    assert any(answer.startswith("None of the variables asked for is found") for answer in answers)
