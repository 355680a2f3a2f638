"""The search's derivatives and steps, and that it finds subspaces that are known."""

from typing import Any

import pytest
import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import Transformer
from incontext_linear.probing import exchange as exchanges
from incontext_linear.probing.alignment_calibration import build_network
from incontext_linear.probing.alignment_config import SearchConfig
from incontext_linear.probing.alignment_controls import natural_span
from incontext_linear.probing.alignment_search import (
    SearchPairs,
    _damped_step,
    _linearised,
    _ridge_matrices,
    _slope,
    closed_form,
    descend,
    learn_bases,
    refine,
)
from incontext_linear.probing.causal_models import build_causal_models
from incontext_linear.probing.exchange import PromptPairs, exchange, frozen, layer_pairs
from incontext_linear.tasks import generator


@pytest.mark.parametrize("positions", ["query", "y_tokens", "context"])
def test_derivatives_are_those_of_finite_differences(positions: str):
    made = Transformer(2, 6, ModelConfig(num_layers=2, num_heads=2, width=8)).double()
    model = frozen(made.initialize(generator(0, "test")))
    pairs = PromptPairs.draw(
        TaskConfig(dim=2, num_examples=6), 5, 4, 0, "derivatives", torch.float64
    )
    states = list(layer_pairs(model, pairs))[1]
    span = natural_span(states, positions)
    drawn = torch.randn(3, 2, span.shape[1], 2, generator=generator(1, "test")).double()
    wanted, scale = torch.zeros(2, 5).double(), torch.tensor([1.0, 4.0]).double()
    batch = SearchPairs(states, positions, span, wanted, scale)
    bases = torch.linalg.qr(drawn[0]).Q
    tangent = drawn[1] - bases @ (bases.mT @ drawn[1])
    _, jacobian = _linearised(model, batch, bases)
    moved, step = [], 1e-5
    for sign in (1, -1):
        turned = torch.linalg.qr(bases + sign * step * tangent).Q
        moved.append(exchange(model, states, positions, span @ turned) / scale.sqrt()[:, None])
    difference = (moved[0] - moved[1]) / (2 * step)
    along = torch.einsum("cbsr,csr->cb", jacobian, tangent)
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-7)
    inside = torch.einsum("csr,cbsq->cbrq", bases, jacobian)
    assert inside.abs().max() < 1e-12  # turning a basis within its subspace changes nothing


@pytest.mark.parametrize("tokens", [1, 30, 1000])
@pytest.mark.parametrize("positions", ["query", "y_tokens"])
def test_slopes_are_the_errors_times_the_derivatives_however_many_tokens_and_threads_run(
    positions: str, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    made = Transformer(2, 6, ModelConfig(num_layers=3, num_heads=2, width=8)).double()
    model = frozen(made.initialize(generator(0, "test")))
    task = TaskConfig(dim=2, num_examples=6)
    pairs = PromptPairs.draw(task, 7, 4, 0, "slopes", torch.float64)
    states = list(layer_pairs(model, pairs))[1]
    span, rng = natural_span(states, positions), generator(1, "test")
    bases = torch.cat([_drawn(span.shape[1], 2, rng) for _ in range(3)])
    wanted = torch.randn(3, 7, generator=rng).double()
    batch = SearchPairs(states, positions, span, wanted, torch.tensor([1.0, 4.0, 0.5]).double())
    errors, jacobian = _linearised(model, batch, bases)
    expected = torch.einsum("cb,cbsr->csr", errors, jacobian) / 7
    answers = exchange(model, states, positions, span @ bases)
    monkeypatch.setattr(exchanges, "TOKENS_IN_CACHE", tokens)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):  # of two, each computes parts of its own
            torch.set_num_threads(threads)
            slope = _slope(model, batch, bases)
            found.append((slope, exchange(model, states, positions, span @ bases)))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], (expected, answers))
    allowed = 0.0 if tokens < 1000 else 1e-12  # 1,000 are one part, which both share
    torch.testing.assert_close(found[1], found[0], rtol=allowed, atol=allowed)


def test_the_triangles_ridge_is_that_of_whole_matrices():
    rng = generator(0, "test")
    drawn = torch.randn(20, 4, 4, generator=rng).double()
    whole, wanted = (drawn + drawn.mT).flatten(1), torch.randn(2, 20, generator=rng).double()
    kept = torch.ones(4, 4).triu().flatten().bool()
    found = list(_ridge_matrices(whole[:, kept], wanted))
    sizes = whole.square().mean(0).sqrt()
    for at, unit in ((1, torch.ones(16).double()), (4, sizes)):  # with the penalty of 10⁻³
        scaled = whole / unit
        penalty = 1e-3 * scaled.square().sum(1).mean() * torch.eye(16)
        solved = torch.linalg.solve(scaled.mT @ scaled + penalty, scaled.mT @ wanted.mT)
        torch.testing.assert_close(found[at].flatten(1), solved.mT / unit)


def test_both_forms_of_the_damped_step_are_one():
    jacobian = torch.randn(2, 6, 9, generator=generator(0, "test")).double()
    errors = torch.randn(2, 6, generator=generator(1, "test")).double()
    damping = torch.tensor([0.1, 1.0]).double()
    wide = _damped_step(errors, jacobian, damping)
    # Pairs whose derivatives are zero change nothing, but make the other form the smaller one.
    nothing = torch.zeros(2, 4, 9).double()
    tall = _damped_step(
        torch.cat((errors, nothing[..., 0]), 1), torch.cat((jacobian, nothing), 1), damping
    )
    torch.testing.assert_close(wide, tall)


@pytest.fixture(scope="module")
def rotated() -> tuple[Any, SearchPairs]:
    """The query's token of gradient descent where the sums are taken, and no axis is special."""
    network, _, task, algorithm = build_network("rotated")
    pairs = PromptPairs.draw(task, 320, 4, 0, "search", torch.float64)
    model = frozen(network)
    states = list(layer_pairs(model, pairs))[3]
    models = build_causal_models(["moment", "gram", "weights"])
    parts = pairs.recipient, pairs.donor, algorithm.build()
    wanted = torch.stack([causal(*parts) for causal in models.values()])
    span = natural_span(states, "query")
    return model, SearchPairs(states, "query", span, wanted, wanted.var(1))


@pytest.mark.slow
def test_known_subspaces_are_found_at_their_ranks_and_at_no_smaller_one(
    rotated: tuple[Any, SearchPairs],
):
    model, pairs = rotated
    fitted, chosen, held_out = pairs[:192], pairs[192:256], pairs[256:]
    bases = learn_bases(
        model, fitted, chosen, (2, 3, 5), SearchConfig(batch_size=128), generator(0, "test")
    )
    errors = {
        rank: held_out.losses(model, fitted.span.mT @ basis).tolist()
        for rank, basis in bases.items()
    }
    moment, gram, weights = zip(*errors.values(), strict=True)
    assert moment[0] < 1e-4
    assert gram[1] < 1e-4 < 0.1 < gram[0]
    assert weights[2] < 1e-4 < 0.1 < weights[0]


@pytest.mark.slow
def test_steps_from_the_closed_form_end_lower_than_from_random_subspaces(
    rotated: tuple[Any, SearchPairs],
):
    model, pairs = rotated
    rng, settings = generator(1, "test"), SearchConfig(num_steps=8, batch_size=128)
    half_way = closed_form(model, pairs)[6][:, :, :3]
    drawn = torch.linalg.qr(torch.randn(half_way.shape, generator=rng).double()).Q
    gram = 1
    ends = [refine(model, pairs, first, settings, rng) for first in (half_way, drawn)]
    errors = [pairs.losses(model, end)[gram].item() for end in (half_way, *ends)]
    assert errors[1] < 0.1 * errors[0]  # the steps are needed
    assert errors[1] < 0.1 * errors[2]  # and so is the start: the other ends in a local minimum


def test_the_closed_form_is_exact_where_the_answer_is_linear_in_one_part(
    rotated: tuple[Any, SearchPairs],
):
    model, pairs = rotated
    starts = closed_form(model, pairs[:128])
    from_recipient, from_donor = starts[0], starts[12]
    moment, weights = 0, 2  # the answer is linear in Xᵀy, and in x', which stays where w goes
    held_out = pairs[128:]
    assert held_out.losses(model, from_recipient[:, :, :2])[moment] < 1e-4
    assert held_out.losses(model, from_donor[:, :, :5])[weights] < 1e-4


def test_descent_finds_planted_subspaces_of_several_ranks_from_near_them():
    made = Transformer(2, 6, ModelConfig(num_layers=2, num_heads=2, width=16)).double()
    model, rng = frozen(made.initialize(generator(0, "test"))), generator(2, "test")
    pairs = PromptPairs.draw(TaskConfig(dim=2, num_examples=6), 160, 4, 0, "search", torch.float64)
    states = list(layer_pairs(model, pairs))[1]
    span = natural_span(states, "query")
    planted = [_drawn(span.shape[1], rank, rng) for rank in (2, 3)]
    # Each rank's search wants what the exchange along the other's planted subspace gives, too.
    wanted = torch.cat([exchange(model, states, "query", span @ one) for one in planted])
    search = SearchPairs(states, "query", span, wanted, wanted.var(1))
    starts = [
        torch.linalg.qr(one + 0.2 * torch.randn(2, *one.shape[1:], generator=rng)).Q
        for one in planted
    ]
    ends = descend(model, search, starts, SearchConfig(gradient_steps=80), rng)
    for own, (start, end) in enumerate(zip(starts, ends, strict=True)):
        before, after = (search.losses(model, bases)[own] for bases in (start, end))
        assert after < 0.1 * before
        identity = torch.eye(end.shape[2]).double().expand(2, -1, -1)
        torch.testing.assert_close(end.mT @ end, identity)
    few = SearchConfig(gradient_steps=2)
    alone = descend(model, search, starts[:1], few, generator(3, "test"))
    both = descend(model, search, starts, few, generator(3, "test"))
    torch.testing.assert_close(alone[0], both[0])  # other ranks beside it change nothing


def _drawn(size: int, rank: int, rng: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(1, size, rank, generator=rng).double()).Q
