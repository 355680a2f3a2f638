"""The search on networks whose variables are known: what it finds, and what it must not.

Four constructed networks: gradient descent; the same with two copies of w; the same with its
residual stream turned by a random orthogonal matrix, so that no axis is special; ridge regression.
Which variable is held where is not declared but measured, by exchanging the network's own rows:
every set of registers is tried, and a variable is held where the best set gives its counterfactual.
"""

import itertools
from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.config import TaskConfig
from incontext_linear.construction import ConstructedTransformer, gradient_descent, ridge
from incontext_linear.construction.config import FLOAT64
from incontext_linear.probing.alignment import align
from incontext_linear.probing.alignment_config import (
    NETWORKS,
    AlgorithmConfig,
    AlignmentConfig,
)
from incontext_linear.probing.alignment_rule import CELL, FOUND, LEARNER, candidates, decide
from incontext_linear.probing.alignment_scores import Counterfactuals, Scale, mean_share
from incontext_linear.probing.causal_models import build_causal_models
from incontext_linear.probing.exchange import PromptPairs, exchange, frozen, layer_pairs
from incontext_linear.tasks import generator

MOST_PAIRS = 1024
"""Pairs of a search in a constructed network; few numbers are learned there."""
HELD = 0.95
"""Share that the best set of registers reaches where a variable is held."""
# Small beside FLOAT64's: rotated, the padding's rounding reaches every row.
_CONSTANTS = FLOAT64.model_copy(update={"padding": 1e6})
# The smallest at which every variable is told apart: the networks' depth grows with n and with m.
_TASK = TaskConfig(dim=2, num_examples=5)
_RIDGE_TASK = TaskConfig(dim=2, num_examples=3)
_DESCENT = AlgorithmConfig(penalty=None, step_size=0.05, num_steps=2)
_RIDGE = AlgorithmConfig(penalty=1.0, step_size=0.05, num_steps=2)


class _Turned(nn.Module):
    """A block between a turned residual stream and a turned residual stream."""

    def __init__(self, block: nn.Module, rotation: nn.Parameter):
        super().__init__()
        self.block, self.rotation = block, rotation

    def forward(self, hidden: Tensor) -> Tensor:
        return self.block(hidden @ self.rotation) @ self.rotation.mT


class Rotated(nn.Module):
    """A learner whose residual stream is turned, h → Rh; its answers stay what they are."""

    def __init__(self, base: ConstructedTransformer, rotation: Float[Tensor, "width width"]):
        super().__init__()
        self.base, self.rotation = base, nn.Parameter(rotation)
        self.dim, self.num_examples = base.dim, base.num_examples
        self.blocks = nn.ModuleList(_Turned(block, self.rotation) for block in base.blocks)

    def forward(self, xs: Tensor, ys: Tensor) -> Tensor:
        """The base's own predictions (B, n)."""
        return self.base(xs, ys)

    def embed(self, xs: Tensor, ys: Tensor) -> Tensor:
        """(B, T, H)."""
        return self.base.embed(xs, ys) @ self.rotation.mT

    def prediction_tokens(self, num_tokens: int) -> slice | Tensor:
        """As the base's."""
        return self.base.prediction_tokens(num_tokens)

    def read(self, hidden: Tensor) -> Tensor:
        """What a token of the last residual stream predicts."""
        return self.base.read(hidden @ self.rotation)


def build_network(
    name: str,
) -> tuple[nn.Module, ConstructedTransformer, TaskConfig, AlgorithmConfig]:
    """A network by name, the constructed one inside it, its task and its algorithm.

    Raises:
        ValueError: if the name is not one of `NETWORKS`.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; allowed: {', '.join(map(repr, NETWORKS))}")
    if name == "ridge":
        made = ridge(_RIDGE_TASK.dim, _RIDGE_TASK.num_examples, penalty=1.0, constants=_CONSTANTS)
        return made, made, _RIDGE_TASK, _RIDGE
    made = gradient_descent(
        _TASK.dim,
        _TASK.num_examples,
        step_size=_DESCENT.step_size,
        num_steps=_DESCENT.num_steps,
        copies=2 if name == "two_copies" else 1,
        constants=_CONSTANTS,
    )
    if name != "rotated":
        return made, made, _TASK, _DESCENT
    width = made.config.width
    drawn = torch.randn(width, width, generator=generator(0, "rotation"), dtype=torch.float64)
    return Rotated(made, torch.linalg.qr(drawn).Q), made, _TASK, _DESCENT


def register_sets(network: ConstructedTransformer) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every set of the program's registers, with the unit vectors of its rows (H, rows)."""
    own = {
        name: torch.as_tensor(rows).unique()
        for name, rows in network.rows.items()
        if name not in network.rows.RESERVED
    }
    identity = torch.eye(network.config.width, dtype=torch.float64)
    for size in range(1, len(own) + 1):
        for names in itertools.combinations(own, size):
            yield names, identity[:, torch.cat([own[name] for name in names]).unique()]


@torch.no_grad()
def held_variables(name: str, config: AlignmentConfig, num_pairs: int = 64) -> pd.DataFrame:
    """Which variables a network holds, where, by exchanging its own rows.

    Args:
        name: of `NETWORKS`.
        config: causal models and positions.
        num_pairs: pairs that score.

    Returns:
        ``layer``, ``positions``, ``model``, ``rows_share`` (of the best set of registers),
        ``registers`` and ``held``.
    """
    _, network, task, algorithm = build_network(name)
    model, models = frozen(network), build_causal_models(config.models)
    seen = config.examples_for(task.dim, task.num_examples)
    pairs = PromptPairs.draw(task, num_pairs, seen, 0, "held variables", torch.float64)
    sets = list(register_sets(network))
    rows = []
    for states in layer_pairs(model, pairs):
        known = Counterfactuals.of(models, pairs, states.unchanged, algorithm.build())
        scales = {causal: Scale.fit(causal, known) for causal in models}
        for positions in config.positions:
            asked = [n for n, m in models.items() if positions == "query" or not m.in_query_only]
            answers = [exchange(model, states, positions, rows_[None])[0] for _, rows_ in sets]
            for causal in asked:
                shares = [mean_share(scales[causal], answer, known) for answer in answers]
                best = max(range(len(sets)), key=shares.__getitem__)
                found = " ".join(sets[best][0])
                rows.append([states.layer, positions, causal, shares[best], found])
    table = pd.DataFrame(rows, columns=[*CELL, "rows_share", "registers"])
    return table.assign(held=table["rows_share"] >= HELD)


def calibrate(name: str, config: AlignmentConfig, seed: int) -> pd.DataFrame:
    """The search, its controls and its verdicts on one network, beside what the network holds.

    Args:
        name: of `NETWORKS`.
        config: as for a learner; its algorithm and its number of examples are the network's.
        seed: of prompts and searches.

    Returns:
        `decide`'s columns, `held_variables`' columns and ``network``.
    """
    model, _, task, algorithm = build_network(name)
    changes = {"algorithm": algorithm, "examples_seen": None, "ranks": None, "layers": None}
    changes["num_train_pairs"] = min(config.num_train_pairs, MOST_PAIRS)
    changes["num_test_pairs"] = min(config.num_test_pairs, MOST_PAIRS // 4)
    own = config.model_copy(update=changes)
    found = align(model, task, own, seed, dtype=torch.float64).assign(source=LEARNER)
    cells = candidates(found, own.rule)
    if cells:
        shuffled = align(model, task, own, seed, cells, shuffle=True, dtype=torch.float64)
        found = pd.concat((found, shuffled.assign(source="shuffled")), ignore_index=True)
    verdicts = decide(found, own.rule)
    return verdicts.merge(held_variables(name, own), on=CELL).assign(network=name)


def calibration_summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each network: held variables that were found, and found ones that are not held."""
    counted = table.assign(found=table["verdict"] == FOUND)
    rows = []
    for network, part in counted.groupby("network", sort=False):
        held, absent = part[part["held"]], part[~part["held"]]
        rows.append(
            {
                "network": network,
                "held": len(held),
                "held_found": int(held["found"].sum()),
                "not_held": len(absent),
                "not_held_found": int(absent["found"].sum()),
            }
        )
    return pd.DataFrame(rows)
