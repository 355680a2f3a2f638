"""The prompts that are found are likely, and part the candidates."""

import pytest
import torch
from scipy import stats

from incontext_linear.comparison.adversarial import Bulk, log_density, most_different_prompts
from incontext_linear.comparison.families import build_families
from incontext_linear.config import TaskConfig
from incontext_linear.tasks import draw_prompts


def _member(task, name, **numbers):
    return next(f for f in build_families(task) if f.name == name).member(numbers)


@pytest.fixture(scope="module")
def found(task):
    pair = (
        _member(task, "ridge", penalty=0.3),
        _member(task, "gradient_descent", step_size=0.02, num_steps=20),
    )
    prompts = draw_prompts(task, 96, seed=8)
    args = (*pair, task.inputs, prompts, 5)
    return pair, prompts, most_different_prompts(*args, num_steps=25), args


def _apart(pair, prefixes):
    first, second = (member.predict(prefixes) for member in pair)
    return float((first - second).square().mean())


def test_the_candidates_differ_several_times_more_there(found):
    pair, _, condition, args = found
    start = most_different_prompts(*args, num_steps=0)
    assert _apart(pair, condition.parts[0]) > 5 * _apart(pair, start.parts[0])


def test_every_prompt_stays_within_the_norms_and_densities_of_training(found, task):
    _, prompts, condition, _ = found
    xs = condition.parts[0].xs
    bulk = Bulk.of(task.inputs, prompts.xs[:, :6].double())
    assert len(xs) > 20
    assert bulk.holds(xs).all()
    norms = prompts.xs[:, :6].norm(dim=-1)
    assert xs.norm(dim=-1).max() <= norms.max()
    assert xs.norm(dim=-1).min() >= norms.min()


def test_labels_still_follow_from_one_w(found):
    part = found[2].parts[0]
    fitted = torch.linalg.lstsq(part.xs, part.ys.unsqueeze(-1)).solution
    torch.testing.assert_close((part.xs @ fitted).squeeze(-1), part.ys, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_search_repeats(found):
    _, _, condition, args = found
    again = most_different_prompts(*args, num_steps=25)
    assert torch.equal(again.parts[0].xs, condition.parts[0].xs)


def test_the_density_is_scipys():
    mixture = TaskConfig(inputs="normal*2+1, normal*0.5").inputs
    points = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [stats.norm(1, 2).pdf(points).prod(-1), stats.norm(0, 0.5).pdf(points).prod(-1)]
    torch.testing.assert_close(log_density(mixture, points).exp(), torch.from_numpy(sum(parts) / 2))


def test_uniform_inputs_have_an_edge():
    mixture = TaskConfig(inputs="uniform*2+-1").inputs
    points = torch.tensor([[0.5, -0.9], [0.5, 1.1]])
    torch.testing.assert_close(log_density(mixture, points), torch.tensor([0.25, 0.0]).log())
