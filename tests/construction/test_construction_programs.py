"""Each program against the textbook: plain loops written here, and the predictors of the
package.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incontext_linear.construction import (
    Constants,
    ConstructedTransformer,
    gradient_descent,
    gradient_step,
    one_pass_sgd,
    ridge,
    sherman_morrison,
)
from incontext_linear.construction.config import FLOAT64
from incontext_linear.construction.measurements import LatestExample, relative_error
from incontext_linear.learner.devices import one_thread
from incontext_linear.learner.transformer import Block, Transformer
from incontext_linear.predictors import GradientDescent, OnePassSGD, Predictor, Ridge

SINGLE_STEP, WHOLE_PROMPT = 1e-6, 1e-4
DIMS = (1, 2, 4, 8, 16)

PROGRAMS = {
    "gradient_step": lambda dim, n, **options: gradient_step(
        dim, n, step_size=0.03, penalty=0.4, **options
    ),
    "sherman_morrison": lambda dim, n, **options: sherman_morrison(dim, n, penalty=0.4, **options),
    "one_pass_sgd": lambda dim, n, **options: one_pass_sgd(
        dim, n, step_size=0.03, penalty=0.4, **options
    ),
    "ridge": lambda dim, n, **options: ridge(dim, n, penalty=0.4, **options),
    "gradient_descent": lambda dim, n, **options: gradient_descent(
        dim, n, step_size=0.005, num_steps=5, penalty=0.4, **options
    ),
}
TEXTBOOK = {
    "gradient_step": LatestExample(OnePassSGD(0.03, 0.4)),
    "sherman_morrison": LatestExample(Ridge(0.4)),
    "one_pass_sgd": OnePassSGD(0.03, 0.4),
    "ridge": Ridge(0.4),
    "gradient_descent": GradientDescent(0.005, 5, 0.4),
}


def draw(seed, num_prompts, num_examples, dim, noise=0.5):
    rng = torch.Generator().manual_seed(seed)
    xs = torch.randn(num_prompts, num_examples, dim, dtype=torch.float64, generator=rng)
    ws = torch.randn(num_prompts, dim, 1, dtype=torch.float64, generator=rng)
    noise = noise * torch.randn(num_prompts, num_examples, dtype=torch.float64, generator=rng)
    return xs, (xs @ ws).squeeze(-1) + noise


def predict(model, xs, ys):
    with torch.inference_mode(), one_thread():
        return model(xs, ys)


def states(model, xs, ys):
    with torch.inference_mode(), one_thread():
        return model.hidden_states(xs, ys)


def loop(fit, xs, ys):
    """Predictions of a learner given as a plain function of the examples seen: (X, y) -> w."""
    predictions = np.zeros(ys.shape)
    for prompt, (x, y) in enumerate(zip(xs.numpy(), ys.numpy(), strict=True)):
        for seen in range(len(y)):
            predictions[prompt, seen] = fit(x[:seen], y[:seen]) @ x[seen]
    return torch.from_numpy(predictions)


def sgd_loop(step_size, penalty):
    def fit(inputs, labels):
        w = np.zeros(inputs.shape[1])
        for x, y in zip(inputs, labels, strict=True):
            w = w - 2 * step_size * (x * (x @ w) - x * y + penalty * w)
        return w

    return fit


def ridge_solve(penalty):
    return lambda x, y: np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def descent_loop(step_size, num_steps, penalty):
    def fit(x, y):
        w = np.zeros(x.shape[1])
        for _ in range(num_steps):
            w = w - 2 * step_size * (x.T @ (x @ w - y) + penalty * w)
        return w

    return fit


LOOPS = {
    "gradient_step": lambda x, y: sgd_loop(0.03, 0.4)(x[-1:], y[-1:]),
    "sherman_morrison": lambda x, y: ridge_solve(0.4)(x[-1:], y[-1:]),
    "one_pass_sgd": sgd_loop(0.03, 0.4),
    "ridge": ridge_solve(0.4),
    "gradient_descent": descent_loop(0.005, 5, 0.4),
}


@pytest.mark.slow
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_equals_a_plain_loop_at_every_prefix(name, dim):
    num_prompts = 2 if dim == 16 else 8
    xs, ys = draw(dim, num_prompts, 20, dim)
    error = relative_error(predict(PROGRAMS[name](dim, 20), xs, ys), loop(LOOPS[name], xs, ys))
    assert error < (SINGLE_STEP if name in ("gradient_step", "sherman_morrison") else WHOLE_PROMPT)


@pytest.mark.slow
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), dim=st.integers(1, 8), num_examples=st.integers(1, 12))
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_equals_the_textbook_predictor_on_fresh_draws(name, seed, dim, num_examples):
    xs, ys = draw(seed, 2, num_examples, dim)
    predictions, reference = (
        predict(PROGRAMS[name](dim, num_examples), xs, ys),
        TEXTBOOK[name](xs, ys),
    )
    # Against the labels' size: one draw's predictions may all be close to 0.
    tolerance = SINGLE_STEP if name in ("gradient_step", "sherman_morrison") else WHOLE_PROMPT
    assert (predictions - reference).abs().max() < tolerance * ys.square().mean().sqrt()


@pytest.mark.parametrize("penalty", [0.01, 0.1, 10.0])
def test_ridge_is_exact_for_small_and_large_penalties(penalty):
    xs, ys = draw(0, 4, 20, 8)
    assert (
        relative_error(predict(ridge(8, 20, penalty=penalty), xs, ys), Ridge(penalty)(xs, ys))
        < 1e-5
    )


def test_sgd_whose_steps_are_too_long_is_followed_as_it_diverges():
    xs, ys = draw(15, 4, 20, 8)
    reference = OnePassSGD(0.2)(xs, ys)
    assert reference.abs().max() > 30 * ys.abs().max()
    errors = (predict(one_pass_sgd(8, 20, step_size=0.2), xs, ys) - reference).abs()
    assert (errors <= WHOLE_PROMPT * reference.abs().cummax(dim=1).values + WHOLE_PROMPT).all()


def test_gradient_step_starts_from_any_weights():
    (xs, ys), w = draw(1, 8, 2, 4), np.array([0.5, -1.0, 2.0, 0.3])
    predictions = predict(gradient_step(4, step_size=0.1, penalty=0.7, initial_weights=w), xs, ys)
    start = torch.tensor(w)
    residual = (xs[:, 0] @ start - ys[:, 0])[:, None]
    step = start - 0.2 * (xs[:, 0] * residual + 0.7 * start)
    assert relative_error(predictions[:, 0], xs[:, 0] @ start) < SINGLE_STEP
    assert relative_error(predictions[:, 1], (step * xs[:, 1]).sum(1)) < SINGLE_STEP


def test_sherman_morrison_starts_from_any_weights():
    (xs, ys), w = draw(2, 8, 2, 3), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    predictions = predict(sherman_morrison(3, penalty=0.2, initial_weights=w.tolist()), xs, ys)
    matrix = xs[:, 0, :, None] * xs[:, 0, None] + 0.2 * torch.eye(3, dtype=torch.float64)
    shrunk = torch.linalg.solve(matrix, 0.2 * w + xs[:, 0] * ys[:, :1])
    assert relative_error(predictions[:, 0], xs[:, 0] @ w) < SINGLE_STEP
    assert relative_error(predictions[:, 1], (shrunk * xs[:, 1]).sum(1)) < SINGLE_STEP


def test_the_y_token_holds_the_updated_inverse_of_theorem_2():
    xs, ys = draw(3, 4, 2, 5)
    model = sherman_morrison(5, penalty=0.3)
    inverse = states(model, xs, ys)[-1, :, 1][:, model.rows.inverse]
    matrix = xs[:, 0, :, None] * xs[:, 0, None] + 0.3 * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(inverse, 0.3 * torch.linalg.inv(matrix), atol=1e-8, rtol=0)


def test_every_y_token_of_ridge_holds_the_weights_and_the_inverse_after_its_example():
    xs, ys = draw(4, 2, 6, 3)
    model = ridge(3, 6, penalty=0.3)
    last = states(model, xs, ys)[-1]
    for seen in range(1, 6):
        x, y = xs[:, :seen], ys[:, :seen]
        inverse = torch.linalg.inv(x.mT @ x + 0.3 * torch.eye(3, dtype=torch.float64))
        weights = inverse @ (x.mT @ y[..., None])
        hidden = last[:, 2 * seen - 1]
        torch.testing.assert_close(hidden[:, model.rows.inverse], 0.3 * inverse, atol=1e-8, rtol=0)
        torch.testing.assert_close(hidden[:, model.rows.w], weights, atol=1e-6, rtol=0)


def test_one_repetition_settles_one_more_y_token():
    xs, ys = draw(5, 1, 6, 2)
    model = one_pass_sgd(2, 6, step_size=0.05)
    weights = states(model, xs, ys)[1::2, 0, 1::2][
        :, :, model.rows.w.ravel()
    ]  # (after r steps, y-token, d)
    for repetition in range(1, 6):
        settled = weights[repetition, :repetition]
        torch.testing.assert_close(settled, weights[-1, :repetition], atol=1e-9, rtol=0)
        if repetition < 5:
            assert (weights[repetition, repetition] - weights[-1, repetition]).abs().max() > 1e-4


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_the_trained_class_with_nothing_but_weights_added(name):
    model = PROGRAMS[name](2, 3)
    assert isinstance(model, Transformer)
    assert isinstance(model, Predictor)
    assert [method for method in vars(ConstructedTransformer) if not method.startswith("__")] == []
    assert all(type(block) is Block for block in model.blocks)
    assert model.config.num_layers == len(model.blocks) == len(model.layers)
    plain = Transformer(2, 3, model.config).double()
    plain.load_state_dict(model.state_dict())
    xs, ys = draw(6, 3, 3, 2)
    torch.testing.assert_close(predict(plain, xs, ys), predict(model, xs, ys), atol=0, rtol=0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_prediction_without_examples_is_zero(name):
    xs, ys = draw(7, 4, 5, 3)
    assert predict(PROGRAMS[name](3, 5), xs, ys)[:, 0].abs().max() < 1e-8
    assert predict(PROGRAMS[name](3, 1), xs[:, :1], ys[:, :1]).abs().max() < 1e-8


@pytest.mark.parametrize("name", PROGRAMS)
def test_prediction_depends_on_the_prefix_only(name):
    (xs, ys), (other_xs, other_ys) = draw(8, 3, 6, 2), draw(9, 3, 6, 2)
    xs_after, ys_after = (
        torch.cat((xs[:, :4], other_xs[:, 4:]), 1),
        torch.cat((ys[:, :3], other_ys[:, 3:]), 1),
    )
    model = PROGRAMS[name](2, 6)
    torch.testing.assert_close(
        predict(model, xs, ys)[:, :4], predict(model, xs_after, ys_after)[:, :4], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_shorter_prompt_than_the_program_was_built_for_is_predicted_too(name):
    xs, ys = draw(10, 3, 4, 2)
    error = relative_error(predict(PROGRAMS[name](2, 9), xs, ys), TEXTBOOK[name](xs, ys))
    assert error < SINGLE_STEP


@pytest.mark.parametrize("name", ["one_pass_sgd", "ridge", "gradient_descent"])
def test_queries_behind_every_prefix_are_predicted_as_by_the_textbook(name):
    xs, ys = draw(11, 2, 5, 3)
    queries = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        predictions = PROGRAMS[name](3, 5).predict_queries(xs, ys, queries)
    torch.testing.assert_close(
        predictions, TEXTBOOK[name].predict_queries(xs, ys, queries), atol=1e-6, rtol=0
    )


def test_repeated_layers_share_their_weights():
    short, long = ridge(2, 3, penalty=1.0), ridge(2, 30, penalty=1.0)
    assert (len(short.blocks), len(long.blocks)) == (4 * 3 - 2, 4 * 30 - 2)
    assert len(set(short.blocks)) == len(set(long.blocks)) == 6


@pytest.mark.parametrize("name", PROGRAMS)
def test_float32_program_takes_float32_prompts_and_is_less_exact(name):
    xs, ys = draw(12, 8, 8, 3)
    model = PROGRAMS[name](3, 8, dtype=torch.float32)
    predictions = predict(model, xs.float(), ys.float())
    assert predictions.dtype == torch.float32
    assert 1e-7 < relative_error(predictions.double(), TEXTBOOK[name](xs, ys)) < 0.05


@pytest.mark.parametrize(
    "worse", [{"saturation": 5.0}, {"padding": 1e3}, {"gelu_scale": 0.03}, {"gelu_scale": 1e-9}]
)
def test_constants_far_from_the_chosen_ones_cost_exactness(worse):
    xs, ys = draw(13, 4, 6, 3)
    chosen = FLOAT64
    errors = [
        relative_error(
            predict(PROGRAMS["ridge"](3, 6, constants=constants), xs, ys), TEXTBOOK["ridge"](xs, ys)
        )
        for constants in (chosen, chosen.model_copy(update=worse))
    ]
    assert errors[1] > 100 * errors[0]


def test_building_a_program_leaves_the_global_random_generator_alone():
    before = torch.random.get_rng_state()
    ridge(2, 3, penalty=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gradient_step(0, step_size=0.1), "dim=0"),
        (lambda: gradient_step(2, 0, step_size=0.1), "num_examples=0"),
        (lambda: gradient_step(2, step_size=0.0), "step_size"),
        (lambda: gradient_step(2, step_size=0.1, penalty=-1.0), "penalty"),
        (lambda: gradient_step(2, step_size=0.1, initial_weights=[1.0]), "length dim=2"),
        (lambda: sherman_morrison(2, penalty=0.0), "penalty"),
        (lambda: ridge(0, 3, penalty=1.0), "dim=0"),
        (lambda: ridge(2, 3, penalty=0.0), "penalty"),
        (lambda: one_pass_sgd(2, 0, step_size=0.1), "num_examples=0"),
        (lambda: one_pass_sgd(2, 3, step_size=float("nan")), "step_size"),
        (lambda: gradient_descent(2, 3, step_size=0.1, num_steps=0), "num_steps=0"),
        (
            lambda: Constants(saturation=-1.0, padding=1.0, gelu_scale=1.0, gate_range=1.0),
            "saturation",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_prompt_longer_than_the_program_is_refused():
    xs, ys = draw(14, 1, 4, 2)
    with pytest.raises(ValueError, match="at most 3 examples"):
        ridge(2, 3, penalty=1.0)(xs, ys)
