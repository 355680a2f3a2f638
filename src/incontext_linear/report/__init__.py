"""The page that tells a run: chapters made of its tables, in one self-contained HTML file.

A chapter is a function in `chapters.CHAPTERS` that takes a run's `Results` and gives a `Chapter`,
or None where the run made none of its tables. A new pipeline adds one such function.
"""

from incontext_linear.report.chapters import CHAPTERS, headline
from incontext_linear.report.content import Answer, Chapter, Number, Results, Shown
from incontext_linear.report.page import Page, RunFacts, render

__all__ = [
    "CHAPTERS",
    "Answer",
    "Chapter",
    "Number",
    "Page",
    "Results",
    "RunFacts",
    "Shown",
    "headline",
    "render",
]
