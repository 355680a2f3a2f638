"""The maps of identification, on made-up distances with a known domain."""

import pandas as pd
import pytest

from incontext_linear.figures.identification import HOME, plot_identification, plot_shift_curves


@pytest.fixture
def distances():
    """Ridge explains all but inputs of three times the size; zero explains nothing."""
    cells = [(HOME, float("nan")), ("input_scale", 0.5), ("input_scale", 3.0), ("sphere", 1.0)]
    rows = [
        {
            "shift": shift,
            "strength": strength,
            "examples_seen": k,
            "candidate": candidate,
            "distance": 1.0 if candidate == "zero" else 0.5 if strength == 3.0 else 1e-3,
            "low": 1e-4,
            "high": 1.0,
            "learner_power": 1.0,
        }
        for shift, strength in cells
        for k in (2, 4)
        for candidate in ("ridge", "zero")
    ]
    return pd.DataFrame(rows)


def test_a_bold_strength_is_one_that_the_candidate_explains(distances):
    domain = pd.DataFrame({"shift": ["input_scale", "sphere"]})
    left, right, _ = plot_identification(distances, domain, "ridge").axes
    weights = {text.get_text(): text.get_fontweight() for text in left.texts}
    assert weights == {"0.5": "bold", "3": "normal", "1": "bold"}
    assert [label.get_text() for label in right.get_yticklabels()] == [
        "home",
        "input scale 3",
        "sphere 1",
    ]
    drawn = right.images[0].get_array()
    assert drawn is not None
    assert drawn[1, 0] == pytest.approx(0.5)


def test_shifts_of_one_strength_have_no_curve(distances):
    (axes,) = plot_shift_curves(distances).axes
    assert axes.get_title(loc="left") == "input scale"
    assert len(axes.lines) == 2
