"""Prompts whose spectra separate filters, and the implicit weights of predictors on them.

The prompts have covariances of several condition numbers in random bases, so that the eigenvalues
spread over decades: on isotropic inputs alone the families nearly agree.

Shape letters: B prompts, d dimensions.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from incontext_linear.comparison.divergence import implicit_weights
from incontext_linear.comparison.filters.config import FilterConfig
from incontext_linear.comparison.filters.families import Spectra
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import Predictor
from incontext_linear.tasks import Xs, Ys, draw_prompts, generator

# Eigenvalues below this share of a prompt's largest one are zero: fewer examples than dimensions.
ZERO_EIGENVALUE = 1e-10


class FilterPrompts(NamedTuple):
    """Prompts whose spectra separate filters."""

    xs: Xs
    """k + 1 examples, the last of which is never read."""
    ys: Ys
    queries: Float[Tensor, "batch query dim"]
    conditions: Float[np.ndarray, " batch"]
    fitting: Bool[np.ndarray, " batch"]
    """Whether a prompt fits filters; the others score them."""

    def to(self, *args, **kwargs) -> "FilterPrompts":
        """Move or cast the tensors, as `torch.Tensor.to` does."""
        xs, ys, queries = (tensor.to(*args, **kwargs) for tensor in self[:3])
        return self._replace(xs=xs, ys=ys, queries=queries)


def draw_filter_prompts(task: TaskConfig, config: FilterConfig, seed: int) -> FilterPrompts:
    """Prompts of the task, their inputs stretched to each condition number in turn.

    The inputs become x Vᵀ with V symmetric in a basis of each prompt's own, its eigenvalues
    log-spaced and of mean square 1: E‖x‖² stays, the condition number of V² is the one asked for.
    The queries are the task's.

    Args:
        task: priors over w and x, noise.
        config: numbers of prompts and queries, condition numbers, context length.
        seed: the same seed gives the same prompts.

    Raises:
        ValueError: if the task's prompts are too short for the context length.
    """
    seen, number = config.examples_seen(task), config.num_prompts
    base = draw_prompts(task, number, seed, stream="filters")
    xs, ys = base.xs[:, : seen + 1].double(), base.ys[:, : seen + 1].double()
    noise = ys - (xs @ base.ws.double().unsqueeze(-1)).squeeze(-1)
    group = np.arange(number) % len(config.conditions)
    conditions = np.array(config.conditions)[group]
    rng = generator(seed, "filter bases")
    normal = torch.randn(number, task.dim, task.dim, generator=rng, dtype=xs.dtype)
    bases = torch.linalg.qr(normal)[0]
    powers = torch.linspace(0, -0.5, task.dim, dtype=xs.dtype)
    sizes = torch.from_numpy(conditions)[:, None] ** powers
    sizes = sizes / sizes.square().mean(-1, keepdim=True).sqrt()
    stretched = xs @ ((bases * sizes[:, None, :]) @ bases.mT)
    xs = torch.where(torch.from_numpy(conditions > 1)[:, None, None], stretched, xs).float()
    ys = (xs.double() @ base.ws.double().unsqueeze(-1)).squeeze(-1) + noise
    shape = task.model_copy(update={"num_examples": config.num_queries})
    queries = draw_prompts(shape, number, seed, stream="filter queries").xs
    fitting = np.arange(number) // len(config.conditions) % 2 == 0
    return FilterPrompts(xs, ys.float(), queries, conditions, fitting)


def spectra(prompts: FilterPrompts) -> Spectra:
    """The spectra of the examples that come before each prompt's last query."""
    xs, ys = prompts.xs[:, :-1].double(), prompts.ys[:, :-1].double()
    values, vectors = torch.linalg.eigh(xs.mT @ xs)
    moment = torch.einsum("bij,bi->bj", vectors, torch.einsum("bki,bk->bi", xs, ys))
    present = values > ZERO_EIGENVALUE * values[:, -1:]
    values = torch.where(present, values, 0)
    solution = torch.where(present, moment / torch.where(present, values, 1), 0)
    return Spectra(values.numpy(), vectors.numpy(), solution.numpy())


def learner_weights(predictor: Predictor, prompts: FilterPrompts) -> Float[np.ndarray, "batch dim"]:
    """Implicit weights (B, d) of any predictor at the prompts' context length, float64.

    Raises:
        ValueError: if there are no more queries than dimensions.
    """
    weights = implicit_weights(predictor, prompts.xs, prompts.ys, prompts.queries).weights
    return weights[:, -1].cpu().numpy()
