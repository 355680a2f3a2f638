"""The chapters of the report, in the order of the page, and what its top says of them."""

from collections.abc import Sequence

from incontext_linear.report.alignment import alignment
from incontext_linear.report.behaviour import behaviour, training
from incontext_linear.report.construction import construction
from incontext_linear.report.content import Answer, Chapter, Number, Part
from incontext_linear.report.identification import identification
from incontext_linear.report.inside import causality, probing
from incontext_linear.report.sweeps import phase_diagram
from incontext_linear.report.trainings import diversity, dynamics, seeds

CHAPTERS = (
    Part("training", "What was trained, and how it went", training, "model_training"),
    Part("behaviour", "Behaviour", behaviour, "behavioral_comparison"),
    Part("identification", "Shifts and domain of validity", identification, "identification"),
    Part("probing", "What the hidden states hold", probing, "probing"),
    Part("causality", "Whether it is used", causality, "probing"),
    Part("alignment", "What it is computed with", alignment, "alignment", False),
    Part("construction", "The paper's proof as networks", construction, "construction"),
    Part("phase_diagram", "Along the axis of a sweep", phase_diagram, "phase_diagram", False),
    Part("across_seeds", "Over the seeds of a sweep", seeds, "across_seeds", False),
    Part("dynamics", "Along training", dynamics, "training_dynamics", False),
    Part("diversity", "Task diversity", diversity, "task_diversity", False),
)
"""``command`` is a pipeline's name. A new pipeline adds its chapter here."""

NUM_NUMBERS = 5


def headline(chapters: Sequence[Chapter]) -> tuple[Answer | None, tuple[Number, ...]]:
    """The answer of the highest rank, and the numbers at the top of the page.

    Of each chapter the first number is told before the second of any.
    """
    answers = [chapter.answer for chapter in chapters if chapter.answer]
    placed = [
        (place, number) for chapter in chapters for place, number in enumerate(chapter.numbers)
    ]
    ordered = sorted(placed, key=lambda pair: pair[0])  # stable: chapters keep their order
    best = max(answers, key=lambda answer: answer.rank) if answers else None
    return best, tuple(number for _, number in ordered[:NUM_NUMBERS])
