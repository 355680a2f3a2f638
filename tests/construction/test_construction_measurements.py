"""The measured sizes and errors, the figures, and the pipeline's nodes."""

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from incontext_linear.construction import ConstructionConfig, measurements
from incontext_linear.construction.measurements import (
    PROGRAMS,
    LatestExample,
    constants_table,
    error_table,
    fit_exponent,
    growth_table,
    relative_error,
    size_table,
    trace_gradient_step,
)
from incontext_linear.figures import construction as figures
from incontext_linear.learner.devices import one_thread
from incontext_linear.pipelines.construction.nodes import report_construction_metrics
from incontext_linear.pipelines.construction.pipeline import create_pipeline
from incontext_linear.predictors import Ridge

SMALL = ConstructionConfig(
    size_dims=(1, 2, 3, 4, 6, 8, 12, 16),
    error_dims=(1, 3),
    num_examples=5,
    num_prompts=2,
    sweep_dim=2,
    sweep_num_examples=3,
    sweep_num_prompts=2,
    saturations=(5.0, 60.0),
    paddings=(1e4,),
    gelu_scales=(1e-2,),
)


@pytest.fixture(scope="module")
def sizes():
    return size_table(SMALL)


@pytest.fixture(scope="module")
def errors():
    return error_table(SMALL, seed=0)


@pytest.fixture(scope="module")
def constants():
    return constants_table(SMALL, seed=0)


@pytest.mark.slow
def test_the_number_of_layers_does_not_depend_on_d(sizes):
    layers = sizes.groupby("program")["layers"].agg(["min", "max"])
    assert (layers["min"] == layers["max"]).all()
    assert layers["max"].to_dict() == {
        "gradient_step": 7,
        "sherman_morrison": 11,
        "one_pass_sgd": 4,
        "ridge": 6,
        "gradient_descent": 4 + SMALL.num_steps,
    }


def test_hidden_rows_grow_linearly_for_theorem_1_and_quadratically_for_theorem_2(sizes):
    growth = growth_table(sizes).set_index(["program", "size"])
    for program in ("gradient_step", "one_pass_sgd"):
        rows = growth.loc[[(program, "hidden_rows")]].iloc[0]
        assert rows["exponent"] == pytest.approx(1, abs=0.05)
        assert (rows["quadratic"], rows["linear"]) == pytest.approx((0, 3), abs=0.2)
    for program, factor in {"sherman_morrison": 0.5, "ridge": 1, "gradient_descent": 1}.items():
        rows = growth.loc[[(program, "hidden_rows")]].iloc[0]
        assert 1.5 < rows["exponent"] < 2.1
        assert rows["quadratic"] == pytest.approx(factor, abs=0.2)
        assert growth.loc[(program, "mlp_width"), "quadratic"] == pytest.approx(4, abs=0.15)


def test_hidden_rows_stay_below_the_documented_bounds(sizes):
    for program, bound in {
        "gradient_step": lambda d: 3 * d + 18,
        "one_pass_sgd": lambda d: 3 * d + 18,
        "sherman_morrison": lambda d: d * (d + 1) / 2 + 4 * d + 18,
        "ridge": lambda d: d**2 + 3 * d + 22,
        "gradient_descent": lambda d: d**2 + 3 * d + 18,
    }.items():
        rows = sizes[sizes["program"] == program]
        assert (rows["hidden_rows"] <= bound(rows["dim"])).all(), program


def test_the_prompt_may_grow_without_widening_the_network():
    for measured in PROGRAMS.values():
        short, long = (measured.build(2, n, **measured.arguments(SMALL)) for n in (2, 12))
        assert (short.config.width, short.config.mlp_units) == (
            long.config.width,
            long.config.mlp_units,
        )


def test_the_exponent_of_a_power_law_with_a_constant_is_found():
    dims = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert fit_exponent(dims, 3 * dims**1.5 + 20) == 1.5


@pytest.mark.slow
def test_errors_keep_what_the_construction_promises(errors):
    assert set(errors["program"]) == set(PROGRAMS)
    exact = errors[errors["dtype"] == "float64"]
    single = exact["program"].map(lambda name: PROGRAMS[name].single_step)
    assert (exact.loc[single, "relative_error"] < 1e-6).all()
    assert (exact.loc[~single, "relative_error"] < 1e-4).all()


@pytest.mark.slow
def test_tables_are_a_function_of_the_seed(errors):
    pd.testing.assert_frame_equal(error_table(SMALL, seed=0), errors)
    assert not error_table(SMALL, seed=1).equals(errors)


@pytest.mark.slow
def test_each_sweep_contains_the_chosen_constant_once(constants):
    chosen = constants[constants["chosen"]].groupby(["dtype", "constant", "program"]).size()
    assert (chosen == 1).all()
    assert len(chosen) == 2 * 3 * len(PROGRAMS)


def test_the_latest_example_alone_is_what_a_single_step_sees():
    rng = torch.Generator().manual_seed(0)
    xs, ys = torch.randn(3, 4, 2, generator=rng), torch.randn(3, 4, generator=rng)
    predictions = LatestExample(Ridge(0.5))(xs, ys)
    for seen in range(1, 4):
        alone = Ridge(0.5)(xs[:, seen - 1 : seen + 1], ys[:, seen - 1 : seen + 1])[:, 1]
        torch.testing.assert_close(predictions[:, seen], alone)
    assert not predictions[:, 0].any()
    assert not LatestExample(Ridge(0.5))(xs[:, :1], ys[:, :1]).any()


def test_relative_error_is_the_largest_difference_over_the_root_mean_square():
    reference = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    assert relative_error(
        reference + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), reference
    ) == pytest.approx(0.5 / 12.5**0.5)


def test_measuring_restores_the_number_of_threads():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_trace_holds_the_gradient_step_it_claims():
    trace = trace_gradient_step(seed=3)
    last = trace[trace["layer"] == 7].pivot(index="row", columns="token", values="value")
    x = last.loc[["x[1]", "x[2]", "x[3]"]]
    start = np.array([0.5, 0.0, -0.5])
    residual = start @ x["x₁"] - last.loc["y", "y₁"]
    step = start - 0.2 * (residual * x["x₁"] + 0.5 * start)
    assert last.loc["prediction", "x₂"] == pytest.approx(step @ x["x₂"], rel=1e-6)


@pytest.mark.slow
def test_figures_are_drawn(sizes, errors, constants):
    assert len(figures.plot_sizes(sizes, ConstructionConfig()).axes) == 3
    assert len(figures.plot_errors(errors, ConstructionConfig()).axes) == 2
    assert len(figures.plot_constants(constants, ConstructionConfig()).axes) == 6
    drawn = figures.plot_hidden_matrix(trace_gradient_step(seed=0))
    assert [axes.get_title() != "" for axes in drawn.axes] == [True] * 8
    drawn.canvas.draw()


@pytest.mark.slow
def made_before(table, expected):
    """In the place of what makes such a table; asked for another, it refuses."""

    def give(config, **settings):
        assert (config, settings) == (SMALL, expected)
        return table

    return give


@pytest.mark.slow
def test_the_documentation_figures_are_written_by_one_command(
    tmp_path, monkeypatch, sizes, errors, constants
):
    """By tables that other tests have made: of the command's configuration, and of seed 0."""
    monkeypatch.setattr("sys.argv", ["figures", str(tmp_path)])
    monkeypatch.setattr(figures, "ConstructionConfig", lambda: SMALL)
    for name, table, settings in (
        ("size_table", sizes, {}),
        ("error_table", errors, {"seed": 0}),
        ("constants_table", constants, {"seed": 0}),
    ):
        monkeypatch.setattr(measurements, name, made_before(table, settings))
    figures.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"construction_{name}.png" for name in ("constants", "errors", "hidden_matrix", "sizes")
    ]


def test_metrics_have_one_value_a_dimension(errors):
    sizes = size_table(ConstructionConfig(size_dims=(1, 2, 4)))
    growth = growth_table(sizes)
    metrics = report_construction_metrics(errors)
    ridge = metrics["construction/relative_error.ridge"]
    dims = sorted(errors["dim"].unique())
    assert [point["step"] for point in ridge] == dims
    assert len(metrics) == errors["dtype"].nunique() + len(PROGRAMS)
    assert len(growth) == 2 * len(PROGRAMS)


def test_the_pipeline_needs_nothing_but_parameters():
    assert create_pipeline().inputs() == {"params:construction", "params:seed"}


@pytest.mark.parametrize(
    "bad",
    [
        {"step_size": 0.0},
        {"size_dims": []},
        {"saturations": [-1.0]},
        {"unknown": 1},
        {"float64": {"padding": 1}},
    ],
)
def test_bad_parameters_are_refused(bad):
    with pytest.raises(ValidationError):
        ConstructionConfig(**bad)
