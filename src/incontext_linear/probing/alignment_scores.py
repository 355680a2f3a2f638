"""How far an exchange gives what a causal model predicts, and whether it alone predicts it.

With ŷ_e the answer after the exchange, c the counterfactual and ŷ_r the unchanged answer,

    share    = 1 − E(ŷ_e − c)² / E(c − βŷ_r)²    β: regression of c on ŷ_r
    specific = the same of what is left of ŷ_e and c after regression on ŷ_r and the other models' c
    left     = E(ŷ_e − c)² / E(ŷ_r − c)²         distance left; 1: unmoved, 0: the counterfactual

so a share of 1 is the counterfactual exactly, and 0 what the unchanged answer explains anyway: an
answer that is merely destroyed gets no credit, and one that follows a rival variable is not
specific. Regressions are fitted on pairs that do not score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import BootstrapConfig
from incontext_linear.learner.base import ContinuableLearner
from incontext_linear.probing.causal_models import Algorithm, CausalModel
from incontext_linear.probing.exchange import PromptPairs, prompt_of
from incontext_linear.statistics import ratio_interval

Values = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Counterfactuals:
    """What the causal models predict for some pairs, and what the learner answers unchanged."""

    names: tuple[str, ...]
    values: Float[Tensor, "model batch"]
    unchanged: Values

    @classmethod
    def of(
        cls,
        models: Mapping[str, CausalModel],
        pairs: PromptPairs,
        unchanged: Values,
        algorithm: Algorithm,
    ) -> "Counterfactuals":
        """Those of some pairs."""
        values = [model(pairs.recipient, pairs.donor, algorithm) for model in models.values()]
        return cls(tuple(models), torch.stack(values), unchanged)

    def __getitem__(self, name: str) -> Values:
        return self.values[self.names.index(name)]

    def rivals(self, name: str) -> Float[Tensor, "batch regressor"]:
        """ŷ_r and the other models' counterfactuals."""
        others = [value for own, value in zip(self.names, self.values, strict=True) if own != name]
        return torch.stack((self.unchanged, *others), dim=1)

    def shuffled(self) -> "Counterfactuals":
        """Each pair is given the next one's: a control that no subspace can follow."""
        return Counterfactuals(self.names, self.values.roll(1, 1), self.unchanged)


@dataclass(frozen=True)
class Scale:
    """The regressions that shares are measured against, for one causal model."""

    name: str
    slope: Float[Tensor, " one"]
    """β, a single number."""
    variance: Float[Tensor, ""]
    """E(c − βŷ_r)² on the pairs that it was fitted on."""

    @classmethod
    def fit(cls, name: str, pairs: Counterfactuals) -> "Scale":
        """Fit on pairs that do not score."""
        wanted, alone = pairs[name], pairs.unchanged[:, None]
        slope = _regress(alone, wanted)
        return cls(name, slope, (wanted - alone @ slope).square().mean())

    def terms(self, answers: Values, fit: "AnswerFit", test: Counterfactuals) -> dict[str, Values]:
        """Numerators and denominators of the three shares, for every test pair."""
        wanted, rivals = test[self.name], test.rivals(self.name)
        own = wanted - rivals @ fit.wanted_weights
        edited = answers - rivals @ fit.weights
        return {
            "left": (answers - wanted).square(),
            "whole": (wanted - test.unchanged).square(),
            "variance": (wanted - test.unchanged[:, None] @ self.slope).square(),
            "own_left": (edited - own).square(),
            "own": own.square(),
        }


@dataclass(frozen=True)
class AnswerFit:
    """Regressions on ŷ_r and the rivals' counterfactuals: of the answers after an exchange, and of
    the counterfactual itself. Both on the same pairs, so that answers that are the counterfactual
    have a specificity of 1, however few the pairs are.
    """

    weights: Float[Tensor, " regressor"]
    wanted_weights: Float[Tensor, " regressor"]

    @classmethod
    def fit(cls, name: str, answers: Values, pairs: Counterfactuals) -> "AnswerFit":
        """Fit on pairs that do not score."""
        rivals = pairs.rivals(name)
        return cls(_regress(rivals, answers), _regress(rivals, pairs[name]))


def _regress(
    known: Float[Tensor, "batch regressor"], values: Values
) -> Float[Tensor, " regressor"]:
    """Least-squares weights without an intercept; of regressors that are equal, the smallest."""
    return torch.linalg.pinv(known.double(), rtol=1e-8).to(known) @ values


def share_table(
    terms: Sequence[Mapping[str, Values]], unique: float, bootstrap: BootstrapConfig, seed: int
) -> pd.DataFrame:
    """Shares with intervals over pairs.

    Args:
        terms: of `Scale.terms`, one entry a row of the table.
        unique: specificity is NaN where the counterfactual's own part is a smaller share than this.
        bootstrap: level and number of resamples.
        seed: of the draws.

    Returns:
        ``share``, ``low``, ``high``, ``specific``, ``specific_low``, ``specific_high``, ``left``
        and ``unique``, the share of the counterfactual that ŷ_r and the other models do not
        explain.
    """
    columns = {
        key: torch.stack([row[key] for row in terms], 1).double().cpu().numpy() for key in terms[0]
    }
    share = 1 - ratio_interval(columns["left"], columns["variance"], bootstrap, seed)
    specific = 1 - ratio_interval(columns["own_left"], columns["own"], bootstrap, seed)
    own = columns["own"].mean(0) / columns["variance"].mean(0)
    told_apart = np.where(own >= unique, 1.0, np.nan)
    return pd.DataFrame(
        {
            "share": share["mean"],
            "low": share["high"],
            "high": share["low"],
            "specific": specific["mean"] * told_apart,
            "specific_low": specific["high"] * told_apart,
            "specific_high": specific["low"] * told_apart,
            "left": columns["left"].mean(0) / columns["whole"].mean(0),
            "unique": own,
        }
    )


def mean_share(scale: Scale, answers: Values, test: Counterfactuals) -> float:
    """The share alone, without an interval: for controls and ceilings."""
    wanted = test[scale.name]
    variance = (wanted - test.unchanged[:, None] @ scale.slope).square().mean()
    return (1 - (answers - wanted).square().mean() / variance).item()


@torch.no_grad()
def ceiling_shares(
    model: ContinuableLearner,
    models: Mapping[str, CausalModel],
    pairs: PromptPairs,
    train: Counterfactuals,
    test: Counterfactuals,
) -> dict[str, float]:
    """Each model's ceiling: the share of the learner's own answer to a prompt with the exchanged
    value; NaN where there is no such prompt.
    """
    ceilings = {}
    for name, causal in models.items():
        prompt = causal.prompt(pairs.recipient, pairs.donor)
        if prompt is None:
            ceilings[name] = float("nan")
            continue
        answers = model(*prompt_of(prompt))[:, -1]
        ceilings[name] = mean_share(Scale.fit(name, train), answers, test)
    return ceilings
