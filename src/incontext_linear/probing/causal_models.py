"""Causal models: what a prediction becomes if one variable of an algorithm is another prompt's.

A causal model names a variable (Xᵀy, XᵀX, the weights, …) and says which answer follows if the
recipient's value of it is exchanged for the donor's and everything else stays (Geiger et al. 2023).
Different models give different answers for the same pair of prompts, which is what tells one
variable from another. A model is a small class that the parameters name; one of a user's own is
named by its dotted path.

Shape letters: B pairs, k examples, d dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import import_dotted

Weights = Float[Tensor, "batch dim"]
Answers = Float[Tensor, " batch"]


class Examples(NamedTuple):
    """What a prompt's query is asked behind: k examples, and the query."""

    xs: Float[Tensor, "batch example dim"]
    ys: Float[Tensor, "batch example"]
    query: Float[Tensor, "batch dim"]

    @property
    def gram(self) -> Float[Tensor, "batch dim dim"]:
        """XᵀX."""
        return self.xs.mT @ self.xs

    @property
    def moment(self) -> Weights:
        """Xᵀy."""
        return project(self.xs, self.ys)


def project(
    xs: Float[Tensor, "batch example dim"], values: Float[Tensor, "batch example"]
) -> Weights:
    """Xᵀv."""
    return torch.einsum("bkd,bk->bd", xs, values)


@dataclass(frozen=True)
class Algorithm:
    """The algorithm whose variables are exchanged.

    Args:
        penalty: λ of the ridge regression that a converged learner is compared with; None: gradient
            descent's last iterate w_M is the answer.
        step_size: α of gradient descent, w ← w − 2α(XᵀXw − Xᵀy).
        num_steps: M. The iterate that is exchanged is the one in the middle, w_m with m = M // 2.
    """

    penalty: float | None
    step_size: float
    num_steps: int

    @property
    def middle(self) -> int:
        """m, the step whose iterate and residuals are exchanged."""
        return self.num_steps // 2

    def solve(self, gram: Float[Tensor, "batch dim dim"], moment: Weights) -> Weights:
        """The weights that the algorithm ends with, from XᵀX and Xᵀy."""
        if self.penalty is None:
            return self.descend(gram, moment, torch.zeros_like(moment), self.num_steps)
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve(gram + self.penalty * identity, moment)

    def descend(
        self, gram: Float[Tensor, "batch dim dim"], moment: Weights, start: Weights, num_steps: int
    ) -> Weights:
        """Gradient descent's weights after some steps from ``start``."""
        weights = start
        for _ in range(num_steps):
            slope = torch.einsum("bij,bj->bi", gram, weights) - moment
            weights = weights - 2 * self.step_size * slope
        return weights

    def iterate(self, examples: Examples) -> Weights:
        """w_m of a prompt, from w = 0."""
        start = torch.zeros_like(examples.moment)
        return self.descend(examples.gram, examples.moment, start, self.middle)


class CausalModel(ABC):
    """Exchanges one variable of an algorithm; made without arguments."""

    in_query_only = False
    """Whether the variable knows the donor's query, which no token of the context does."""

    @abstractmethod
    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        """The answers (B,) to the recipients after the exchange."""

    def prompt(self, recipient: Examples, donor: Examples) -> Examples | None:
        """A prompt in which the variable has the donor's value; None: there is no such prompt.

        What the learner answers to it is the most that an exchange inside it can be expected to
        reach: the ceiling.
        """
        return None


def _labelled(xs: Float[Tensor, "batch example dim"], moment: Weights) -> Tensor:
    """Labels y, linear in x, with Xᵀy as given."""
    weights = torch.linalg.pinv(xs.mT @ xs, hermitian=True) @ moment[..., None]
    return (xs @ weights)[..., 0]


def _answer(query: Weights, weights: Weights) -> Answers:
    return (query * weights).sum(-1)


class QueryExchanged(CausalModel):
    """x' is the donor's: x'_dᵀw_r. It has to be found where the query enters."""

    in_query_only = True

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        return _answer(donor.query, algorithm.solve(recipient.gram, recipient.moment))

    def prompt(self, recipient: Examples, donor: Examples) -> Examples:
        """The recipient's examples, the donor's query."""
        return recipient._replace(query=donor.query)


class AnswerExchanged(CausalModel):
    """The whole answer is the donor's: x'_dᵀw_d."""

    in_query_only = True

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        return _answer(donor.query, algorithm.solve(donor.gram, donor.moment))

    def prompt(self, recipient: Examples, donor: Examples) -> Examples:
        """The donor's."""
        return donor


class WeightsExchanged(CausalModel):
    """w is the donor's: x'_rᵀw_d, the answer that the donor's examples give."""

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        return _answer(recipient.query, algorithm.solve(donor.gram, donor.moment))

    def prompt(self, recipient: Examples, donor: Examples) -> Examples:
        """The donor's examples, the recipient's query."""
        return donor._replace(query=recipient.query)


class MomentExchanged(CausalModel):
    """Xᵀy is the donor's, XᵀX stays: x'_rᵀ(X_rᵀX_r)⁻¹X_dᵀy_d."""

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        return _answer(recipient.query, algorithm.solve(recipient.gram, donor.moment))

    def prompt(self, recipient: Examples, donor: Examples) -> Examples:
        """The recipient's x, labelled so that Xᵀy is the donor's (k ≥ d)."""
        return recipient._replace(ys=_labelled(recipient.xs, donor.moment))


class GramExchanged(CausalModel):
    """XᵀX is the donor's, Xᵀy stays: x'_rᵀ(X_dᵀX_d)⁻¹X_rᵀy_r."""

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        return _answer(recipient.query, algorithm.solve(donor.gram, recipient.moment))

    def prompt(self, recipient: Examples, donor: Examples) -> Examples:
        """The donor's x, labelled so that Xᵀy is the recipient's (k ≥ d)."""
        return recipient._replace(xs=donor.xs, ys=_labelled(donor.xs, recipient.moment))


class LabelsExchanged(CausalModel):
    """Every y is the donor's, every x stays: x'_rᵀ(X_rᵀX_r)⁻¹X_rᵀy_d."""

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        moment = project(recipient.xs, donor.ys)
        return _answer(recipient.query, algorithm.solve(recipient.gram, moment))

    def prompt(self, recipient: Examples, donor: Examples) -> Examples:
        """The recipient's x, the donor's y."""
        return recipient._replace(ys=donor.ys)


class IterateExchanged(CausalModel):
    """w_m is the donor's, and the remaining M − m steps are the recipient's."""

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        start, left = algorithm.iterate(donor), algorithm.num_steps - algorithm.middle
        weights = algorithm.descend(recipient.gram, recipient.moment, start, left)
        return _answer(recipient.query, weights)


class ResidualsExchanged(CausalModel):
    """The residuals y − Xw_m are the donor's: the rest of the algorithm fits them with the
    recipient's X, and adds what it finds to the recipient's w_m.
    """

    def __call__(self, recipient: Examples, donor: Examples, algorithm: Algorithm) -> Answers:
        fitted = torch.einsum("bkd,bd->bk", donor.xs, algorithm.iterate(donor))
        moment = project(recipient.xs, donor.ys - fitted)
        weights = algorithm.iterate(recipient) + algorithm.solve(recipient.gram, moment)
        return _answer(recipient.query, weights)


CAUSAL_MODELS: dict[str, type[CausalModel]] = {
    "query": QueryExchanged,
    "answer": AnswerExchanged,
    "weights": WeightsExchanged,
    "moment": MomentExchanged,
    "gram": GramExchanged,
    "labels": LabelsExchanged,
    "iterate": IterateExchanged,
    "residuals": ResidualsExchanged,
}
"""The project's own models by the names that the parameters use."""


def build_causal_models(names: Iterable[str]) -> dict[str, CausalModel]:
    """The causal models that the parameters name, in their order.

    Args:
        names: of `CAUSAL_MODELS`, or dotted paths of classes of one's own.

    Raises:
        ValueError: if a name is unknown, or a dotted path leads to no causal model.
    """
    return {name: _build(name) for name in names}


def _build(name: str) -> CausalModel:
    allowed = f"{', '.join(map(repr, CAUSAL_MODELS))}, or the dotted path of a class of your own"
    if name in CAUSAL_MODELS:
        return CAUSAL_MODELS[name]()
    if "." not in name:
        raise ValueError(f"unknown causal model {name!r}; allowed: {allowed}")
    try:
        kind = import_dotted(name)
    except ValueError as error:
        raise ValueError(
            f"cannot import the causal model {name!r} ({error}); allowed: {allowed}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, CausalModel)):
        raise ValueError(
            f"{name!r} is not a causal model; allowed: a subclass of {CausalModel.__module__}."
            f"{CausalModel.__name__}"
        )
    try:
        return kind()
    except TypeError as error:
        raise ValueError(
            f"cannot make the causal model {name!r} ({error}); allowed: the path of a class that "
            "is made without arguments"
        ) from error
