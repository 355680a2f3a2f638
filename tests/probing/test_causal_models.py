"""Each causal model against a direct computation, prompt by prompt."""

import numpy as np
import pytest
import torch

from incontext_linear.predictors import GradientDescent, OrdinaryLeastSquares
from incontext_linear.probing.causal_models import (
    CAUSAL_MODELS,
    Algorithm,
    CausalModel,
    Examples,
    build_causal_models,
)
from incontext_linear.probing.exchange import prompt_of

DESCENT = Algorithm(None, 0.03, 4)
RIDGE = Algorithm(1e-9, 0.03, 4)


def draw(seed: int, number: int = 5, k: int = 6, dim: int = 2) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    xs = torch.randn(number, k + 1, dim, generator=rng, dtype=torch.float64)
    ys = torch.randn(number, k, generator=rng, dtype=torch.float64)
    return Examples(xs[:, :k], ys, xs[:, k])


def by_hand(name: str, r: Examples, d: Examples) -> np.ndarray:
    """The same with NumPy, a pair at a time."""
    answers = []
    arrays = zip(*(part.numpy() for part in (*r, *d)), strict=True)
    for x_r, y_r, q_r, x_d, y_d, q_d in arrays:
        pairs = {
            "query": (x_r, x_r.T @ y_r, q_d),
            "answer": (x_d, x_d.T @ y_d, q_d),
            "weights": (x_d, x_d.T @ y_d, q_r),
            "moment": (x_r, x_d.T @ y_d, q_r),
            "gram": (x_d, x_r.T @ y_r, q_r),
            "labels": (x_r, x_r.T @ y_d, q_r),
        }
        x, moment, query = pairs[name]
        answers.append(query @ np.linalg.inv(x.T @ x) @ moment)
    return np.array(answers)


@pytest.mark.parametrize("name", ["query", "answer", "weights", "moment", "gram", "labels"])
def test_models_of_a_converged_algorithm(name: str):
    recipient, donor = draw(0), draw(1)
    answers = CAUSAL_MODELS[name]()(recipient, donor, RIDGE)
    np.testing.assert_allclose(answers, by_hand(name, recipient, donor), rtol=1e-6)


@pytest.mark.parametrize("name", list(CAUSAL_MODELS))
def test_exchanging_a_prompt_with_itself_changes_nothing(name: str):
    recipient = draw(2)
    known = (
        recipient
        if name != "residuals"
        else recipient._replace(ys=torch.einsum("bkd,bd->bk", recipient.xs, recipient.query))
    )
    answers = CAUSAL_MODELS[name]()(known, known, RIDGE if name == "residuals" else DESCENT)
    weights = (RIDGE if name == "residuals" else DESCENT).solve(known.gram, known.moment)
    torch.testing.assert_close(answers, (known.query * weights).sum(-1))


def test_the_iterate_is_that_of_gradient_descent_and_goes_on_from_there():
    recipient, donor = draw(3), draw(4)
    half = GradientDescent(0.03, 2)(*prompt_of(donor._replace(query=recipient.query)))[:, -1]
    torch.testing.assert_close((recipient.query * DESCENT.iterate(donor)).sum(-1), half)
    whole = GradientDescent(0.03, 4)(*prompt_of(recipient))[:, -1]
    same = CAUSAL_MODELS["iterate"]()(recipient, recipient, DESCENT)
    torch.testing.assert_close(same, whole)
    assert not torch.allclose(CAUSAL_MODELS["iterate"]()(recipient, donor, DESCENT), whole)


@pytest.mark.parametrize("name", [n for n in CAUSAL_MODELS if n not in ("iterate", "residuals")])
def test_least_squares_answers_the_realised_prompt_as_the_model_says(name: str):
    recipient, donor = draw(5), draw(6)
    model = CAUSAL_MODELS[name]()
    prompt = model.prompt(recipient, donor)
    assert prompt is not None
    answers = OrdinaryLeastSquares()(*prompt_of(prompt))[:, -1]
    torch.testing.assert_close(answers, model(recipient, donor, RIDGE), rtol=1e-5, atol=1e-6)


class Half(CausalModel):
    """A user's own: half the donor's weights."""

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm):
        return (recipient.query * algorithm.solve(donor.gram, donor.moment)).sum(-1) / 2


def test_a_model_of_ones_own_is_named_by_its_path():
    built = build_causal_models(["weights", f"{__name__}.Half"])
    recipient, donor = draw(7), draw(8)
    weights, half = (model(recipient, donor, RIDGE) for model in built.values())
    torch.testing.assert_close(half, weights / 2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("momentum", "unknown causal model 'momentum'; allowed: 'query'"),
        ("no.such.Model", "cannot import the causal model 'no.such.Model'"),
        (f"{__name__}.draw", "is not a causal model; allowed: a subclass of"),
        ("incontext_linear.probing.causal_models.CausalModel", "cannot make the causal model"),
    ],
)
def test_what_is_no_causal_model_is_refused(name: str, says: str):
    with pytest.raises(ValueError, match=says):
        build_causal_models([name])
