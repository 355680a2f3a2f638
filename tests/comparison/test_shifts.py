"""Each shift changes what its name says, and nothing where it is at home."""

import numpy as np
import pytest
import torch
from scipy import stats

from incontext_linear.comparison.shifts import (
    SHIFTS,
    ConditionNumber,
    HeavyTailedCoordinates,
    HeavyTailedInputs,
    HeavyTailedNoise,
    InputMean,
    LabelNoise,
    LabelOutlier,
    Orthant,
    OrthogonalQuery,
    PromptLength,
    PromptShift,
    QueryScale,
    QueryShift,
    RepeatedExamples,
    SeenQuery,
    SparseWeights,
    Sphere,
    Subspace,
    build_shifts,
    noise_of,
)
from incontext_linear.config import TaskConfig
from incontext_linear.tasks import draw_prompts

NOISY = TaskConfig(dim=4, num_examples=10, noise_std=0.3)
PROMPTS = draw_prompts(NOISY, 256, seed=0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


WHOLE = [name for name, kind in SHIFTS.items() if issubclass(kind, PromptShift)]
QUERY = [name for name, kind in SHIFTS.items() if issubclass(kind, QueryShift)]


@pytest.mark.parametrize("name", WHOLE)
def test_at_home_nothing_changes(name):
    changed = SHIFTS[name](SHIFTS[name].home)(PROMPTS, rng())
    for before, after in zip(PROMPTS, changed, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", QUERY)
def test_at_home_the_query_is_the_prompts_own(name):
    query = SHIFTS[name](SHIFTS[name].home).query(PROMPTS, 3, rng())
    torch.testing.assert_close(query, PROMPTS.xs[:, 3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_a_seed_repeats_and_shapes_stay(name):
    shift = SHIFTS[name](SHIFTS[name].strengths[-1])
    once, again = shift(PROMPTS, rng(1)), shift(PROMPTS, rng(1))
    for first, second in zip(once, again, strict=True):
        assert torch.equal(first, second)
    assert once.xs.shape[:2] == once.ys.shape
    assert torch.isfinite(once.xs).all()
    assert torch.isfinite(once.ys).all()


LABELS_FOLLOW = [
    n for n in WHOLE if n not in ("label_noise", "heavy_tailed_noise", "label_outlier")
]


@pytest.mark.parametrize("name", LABELS_FOLLOW)
def test_labels_follow_from_the_weights_with_the_tasks_own_noise(name):
    changed = SHIFTS[name](SHIFTS[name].strengths[0])(PROMPTS, rng())
    labels = np.einsum("bnd,bd->bn", changed.xs.double(), changed.ws.double())
    noise = changed.ys.numpy() - labels
    assert np.std(noise) == pytest.approx(0.3, rel=0.05)
    if name not in ("prompt_length", "repeated_examples"):
        np.testing.assert_allclose(noise, noise_of(PROMPTS), atol=1e-4)


def test_the_covariance_has_its_condition_number_and_keeps_its_trace():
    task = TaskConfig(dim=4, num_examples=4000)
    xs = ConditionNumber(100)(draw_prompts(task, 3, 0), rng()).xs.double()
    for x in xs:
        values = np.linalg.eigvalsh(np.cov(x.T.numpy(), bias=True))
        assert values[-1] / values[0] == pytest.approx(100, rel=0.15)
        assert values.sum() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(("share", "rank"), [(0.25, 1), (0.5, 2), (0.75, 3), (0.01, 1)])
def test_a_subspace_has_its_dimensions(share, rank):
    xs = Subspace(share)(PROMPTS, rng()).xs.double()
    assert (torch.linalg.matrix_rank(xs, rtol=1e-5) == rank).all()
    assert float(xs.square().sum(-1).mean()) == pytest.approx(4, rel=0.15)


def test_a_mean_moves_every_prompt_in_a_direction_of_its_own():
    moved = InputMean(2.0)(PROMPTS, rng()).xs - PROMPTS.xs
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved[:, 0].norm(dim=-1), torch.full((256,), 4.0))
    assert moved[:, 0].mean(0).abs().max() < 1


def test_in_an_orthant_a_coordinate_keeps_its_sign():
    xs = Orthant(0.5)(PROMPTS, rng()).xs
    constant = (xs.sign() == xs[:, :1].sign()).all(1)
    assert constant[:, :2].all()
    assert constant[:, 2:].float().mean() < 0.05


def test_on_a_sphere_all_norms_are_one():
    norms = Sphere(1.0)(PROMPTS, rng()).xs.norm(dim=-1)
    torch.testing.assert_close(norms, norms[:1, :1].expand_as(norms))


@pytest.mark.parametrize("freedom", [4.0, 6.0])
def test_heavy_tails_are_students_t_of_unit_variance(freedom):
    task = TaskConfig(dim=2, num_examples=2000)
    prompts = draw_prompts(task, 10, 0)
    scale = ((freedom - 2) / freedom) ** 0.5
    for shift in (HeavyTailedCoordinates, HeavyTailedInputs):
        xs = shift(1 / freedom)(prompts, rng()).xs.double().numpy()
        sample = xs.reshape(-1, 2)[:, 0]
        assert stats.kstest(sample, stats.t(freedom, scale=scale).cdf).pvalue > 1e-3
    joint, apart = (
        np.corrcoef(np.abs(s(1 / freedom)(prompts, rng()).xs.reshape(-1, 2).numpy().T))[0, 1]
        for s in (HeavyTailedInputs, HeavyTailedCoordinates)
    )
    assert joint > 0.1 > apart + 0.05


def test_heavy_tailed_noise_is_students_t_of_its_size():
    added = (HeavyTailedNoise(0.5)(PROMPTS, rng()).ys - PROMPTS.ys).numpy().ravel()
    assert stats.kstest(added, stats.t(3, scale=0.5 / 3**0.5).cdf).pvalue > 1e-3


def test_label_noise_has_its_size():
    added = LabelNoise(0.7)(PROMPTS, rng()).ys - PROMPTS.ys
    assert float(added.std()) == pytest.approx(0.7, rel=0.05)


def test_one_label_of_the_first_quarter_is_an_outlier():
    moved = (LabelOutlier(3.0)(PROMPTS, rng()).ys - PROMPTS.ys).abs()
    assert ((moved > 0).sum(1) == 1).all()
    assert (moved[:, 2:] == 0).all()
    size = 3 * float(PROMPTS.ys.square().mean().sqrt())
    torch.testing.assert_close(moved.amax(1), torch.full((256,), size))


def test_sparse_weights_are_sparse():
    ws = SparseWeights(0.5)(PROMPTS, rng()).ws
    assert ((ws == 0).sum(-1) == 2).all()
    assert float(ws.square().mean()) == pytest.approx(1, rel=0.15)


def test_examples_repeat():
    xs = RepeatedExamples(2)(PROMPTS, rng()).xs
    assert torch.equal(xs[:, ::2], xs[:, 1::2])
    assert torch.equal(xs[:, ::2], PROMPTS.xs[:, :5])


@pytest.mark.parametrize(("strength", "length"), [(1.5, 15), (2, 20), (4, 40)])
def test_longer_prompts_begin_as_they_were_and_repeat_no_example(strength: float, length: int):
    longer = PromptLength(strength)(PROMPTS, rng())
    assert longer.ys.shape == (256, length)
    torch.testing.assert_close(longer.ys[:, :10], PROMPTS.ys, rtol=1e-5, atol=1e-5)
    apart = torch.cdist(longer.xs, longer.xs) + torch.eye(length)
    assert apart.min() > 1e-4


def test_an_orthogonal_query_is_orthogonal_to_all_examples_and_keeps_its_norm():
    query = OrthogonalQuery(1.0).query(PROMPTS, 3, rng())
    products = (PROMPTS.xs[:, :3] @ query.unsqueeze(-1)).squeeze(-1)
    assert products.abs().max() < 1e-3
    torch.testing.assert_close(query.norm(dim=-1), PROMPTS.xs[:, 3].norm(dim=-1))


def test_a_seen_query_is_an_example_that_was_seen():
    query = SeenQuery(1.0).query(PROMPTS, 4, rng())
    same = (PROMPTS.xs[:, :4] == query.unsqueeze(1)).all(-1)
    assert (same.sum(1) == 1).all()
    assert (same.float().mean(0) > 0.1).all()


def test_a_scaled_query_is_scaled():
    torch.testing.assert_close(QueryScale(3.0).query(PROMPTS, 2, rng()), 3 * PROMPTS.xs[:, 2])


def test_shifts_are_built_by_name_with_their_own_strengths_or_given_ones():
    built = build_shifts({"sphere": None, "input_scale": (2.0, 3.0)})
    assert [shift.strength for shift in built["sphere"]] == [0.0, 1.0]
    assert [shift.strength for shift in built["input_scale"]] == [2.0, 3.0]
    assert set(build_shifts()) == set(SHIFTS)
    dotted = "incontext_linear.comparison.shifts.Sphere"
    assert isinstance(build_shifts({dotted: (1.0,)})[dotted][0], Sphere)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"spere": None}, "unknown shift 'spere'; shifts that exist are input_scale"),
        ({"subspace": (1.5,)}, r"shift 'subspace': strength=1.5 .* ≤ 1"),
        ({"condition_number": (0.5,)}, "≥ 1"),
        ({"heavy_tailed_inputs": (0.5,)}, "no variance"),
        ({"collections.Counter": None}, "is no PromptShift"),
        ({"nowhere.at.all": None}, "cannot import"),
    ],
)
def test_what_is_not_allowed_is_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        build_shifts(chosen)
