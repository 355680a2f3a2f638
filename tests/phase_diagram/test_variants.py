"""Which variants of a sweep are drawn, and how what cannot be drawn is refused."""

import pytest
from support.synthetic_sweep import BASELINES, record

from incontext_linear.config import TaskConfig
from incontext_linear.phase_diagram.config import PhaseDiagramConfig
from incontext_linear.phase_diagram.variants import (
    PhaseDiagramError,
    differing_parameters,
    list_variants,
    missing_cells,
)


def records(*rows):
    return {f"variant_{index}": row for index, row in enumerate(rows)}


def test_failed_unfinished_and_missing_variants_are_named():
    given_records = records(
        record(model__num_layers=1),
        record(model__num_layers=1, seed=1, status="failed", error="training diverged"),
        record(model__num_layers=2, status="running"),
        record(model__num_layers=4),
        record(model__num_layers=4, seed=1),
    )
    table = list_variants(given_records, {"variant_0", "variant_3"}, None, {})
    assert table["used"].tolist() == [True, False, False, True, False]
    assert missing_cells(table) == [
        "variant_1 is not used: its status is 'failed' (training diverged)",
        "variant_2 is not used: its status is 'running'",
        "variant_4 is not used: its predictions are missing",
        "model.num_layers=2 has no variant of seed 1",
    ]


def test_parameters_that_differ_though_they_are_no_axis_are_named():
    def tree(**task):
        return {
            "task": {"dim": 2} | task,
            "training": {"num_steps": 5},
            "probing": {"layers": task},
        }

    assert (
        differing_parameters([tree(noise_std=0.1), tree(noise_std=0.2)], {"task.noise_std"}) == []
    )
    (line,) = differing_parameters([tree(), tree(dim=3)], {"task.noise_std"})
    assert line.startswith("task.dim differs")
    assert line.endswith("2, 3")


def two_axes():
    return records(
        *(record(model__num_layers=layers, model__width=w) for layers in (1, 2) for w in (16, 64))
    )


@pytest.mark.parametrize(
    ("axis", "where", "says"),
    [
        (
            None,
            {},
            r"phase_diagram.axis: several parameters vary in this sweep, model.num_layers, "
            r"model.width",
        ),
        (
            "task.dim",
            {},
            r"'task.dim' is not an axis of this sweep; allowed: model.num_layers, model.width",
        ),
        (
            "model.width",
            {},
            r"phase_diagram.where: model.num_layers varies .* fix it to one of 1, 2",
        ),
        (
            "model.width",
            {"model.num_layers": 3},
            r"model.num_layers=3 is not in this sweep; allowed: 1, 2",
        ),
        (
            "model.width",
            {"task.dim": 3},
            r"'task.dim' is not an axis of this sweep; allowed: model.num_layers, ",
        ),
    ],
)
def test_an_axis_that_cannot_be_drawn_is_refused_with_what_is_allowed(axis, where, says):
    with pytest.raises(PhaseDiagramError, match=says):
        list_variants(two_axes(), set(two_axes()), axis, where)


@pytest.mark.parametrize("axis", [None, "model.num_layers"])
def test_variants_of_an_earlier_definition_with_other_axes_are_passed_over(axis):
    earlier = record(model__width=16) | {"status": "running"}
    mixed = records(earlier, record(model__num_layers=1), record(model__num_layers=2))
    table = list_variants(mixed, set(mixed), axis, {})
    assert table["folder"].tolist() == ["variant_1", "variant_2"]


def test_an_axis_of_words_is_refused():
    words = records(*(record(training__optimizer=name) for name in ("adamw", "muon")))
    with pytest.raises(
        PhaseDiagramError, match=r"has the values 'adamw', 'muon'; allowed: numbers"
    ):
        list_variants(words, set(words), None, {})


def test_other_axes_are_fixed_and_the_remaining_one_is_found():
    table = list_variants(two_axes(), set(two_axes()), None, {"model.width": 64})
    assert set(table["axis"]) == {"model.num_layers"}
    assert table["folder"].tolist() == ["variant_1", "variant_3"]


def test_a_fixed_value_may_be_rounded():
    grid_of_noise = records(
        *(record(model__width=w, task__noise_std=std) for w in (16, 64) for std in (0.25, 1 / 3))
    )
    table = list_variants(grid_of_noise, set(grid_of_noise), None, {"task.noise_std": 0.333})
    assert table["folder"].tolist() == ["variant_1", "variant_3"]


def test_a_parameter_that_goes_along_with_the_axis_needs_no_fixing():
    both = records(*(record(model__width=w, model__num_heads=w // 16) for w in (16, 64)))
    assert len(list_variants(both, set(both), "model.width", {})) == 2


def test_the_noise_is_placed_at_its_ratio_to_the_prior():
    task = TaskConfig(noise_std=0.5, weights="normal*2")
    noisy = record(task__noise_std=0.5) | {
        "parameters": {"task": task.model_dump(mode="json"), "baselines": BASELINES}
    }
    assert list_variants({"v": noisy}, {"v"}, None, {})["coordinate"].tolist() == [0.0625]


def test_where_may_be_nested_or_dotted_and_may_not_fix_the_axis():
    assert PhaseDiagramConfig(where={"model": {"width": 64}}).where == {"model.width": 64}
    assert PhaseDiagramConfig(where={"model.width": 64}).where == {"model.width": 64}
    with pytest.raises(ValueError, match=r"where fixes model.width=64, which is the axis"):
        PhaseDiagramConfig(axis="model.width", where={"model.width": 64})
