"""The search on networks whose variables are known: what it finds, and what it must not.

Four kinds of constructed network, with numbers drawn from a seed: gradient descent; the same with
two copies of w; the same with its residual stream turned by a random orthogonal matrix, so that no
axis is special; ridge regression. Which variable is held where is not declared but measured, by
exchanging the network's own rows: every set of registers is tried, within the span in which natural
states vary.
"""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.config import TaskConfig
from incontext_linear.construction import ConstructedTransformer, gradient_descent, ridge
from incontext_linear.construction.config import FLOAT64
from incontext_linear.learner.transformer import Block
from incontext_linear.probing.alignment import align
from incontext_linear.probing.alignment_config import (
    NETWORKS,
    AlgorithmConfig,
    AlignmentConfig,
)
from incontext_linear.probing.alignment_controls import LEAST_SINE, natural_span
from incontext_linear.probing.alignment_rule import CELL, FOUND, LEARNER, candidates, decide
from incontext_linear.probing.alignment_scores import Counterfactuals, Scale, mean_share
from incontext_linear.probing.causal_models import build_causal_models
from incontext_linear.probing.exchange import (
    LayerPairs,
    PromptPairs,
    exchange,
    frozen,
    layer_pairs,
)
from incontext_linear.tasks import generator

MOST_PAIRS, MOST_STEPS, MOST_BATCH = 512, 10, 64
"""Of a search in a constructed network; few numbers are learned there."""
HELD = 0.95
"""Share that the best set of registers reaches where a variable is held."""
TRUTHS = ("held", "large", "whole", "inseparable", "absent")
"""What is true of a variable at a place.

`held`: a subspace of natural states, smaller than their span, carries it. `large`: so it is, but of
a rank that is not searched. `whole`: their whole span alone does, so that no subspace can be told
from any other. `inseparable`: a register holds it whose states go along with another's in every
prompt, so that only unnatural states exchange it alone. `absent`: no set of registers carries it.
"""
# Smaller than FLOAT64's: rotated, the padding's rounding reaches every row. Division needs it
# larger than that.
_CONSTANTS = FLOAT64.model_copy(update={"padding": 1e6})
_DIVIDING = FLOAT64.model_copy(update={"padding": 1e8})
_NUM_EXAMPLES = {"ridge": 3}
"""Ridge regression's depth grows with the prompt."""
_STEPS = 4
"""Of gradient descent, whose iterate in the middle is w₂: w₁ is Xᵀy times a number."""


class _Turned(nn.Module):
    """A block between a turned residual stream and a turned residual stream."""

    def __init__(self, block: Block, rotation: nn.Parameter):
        super().__init__()
        self.block, self.rotation = block, rotation

    def forward(self, hidden: Tensor) -> Tensor:
        return self.block(hidden @ self.rotation) @ self.rotation.mT

    def from_context(self, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        queries, context = queries @ self.rotation, context @ self.rotation
        return self.block.from_context(queries, context, visible) @ self.rotation.mT


class Rotated(nn.Module):
    """A learner whose residual stream is turned, h → Rh; its answers stay what they are."""

    def __init__(self, base: ConstructedTransformer, rotation: Float[Tensor, "width width"]):
        super().__init__()
        self.base, self.rotation = base, nn.Parameter(rotation)
        self.dim, self.num_examples = base.dim, base.num_examples
        self.blocks = nn.ModuleList(
            _Turned(cast(Block, block), self.rotation) for block in base.blocks
        )

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
    name: str, seed: int = 0
) -> tuple[nn.Module, ConstructedTransformer, TaskConfig, AlgorithmConfig]:
    """A network by name, the constructed one inside it, its task and its algorithm.

    Args:
        name: of `NETWORKS`.
        seed: of the step size or the penalty, and of the rotation.

    Raises:
        ValueError: if the name is not one of `NETWORKS`.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; allowed: {', '.join(map(repr, NETWORKS))}")
    rng = generator(seed, "constructed network")
    drawn = torch.rand((), generator=rng).item()
    task = TaskConfig(dim=2, num_examples=_NUM_EXAMPLES.get(name, 5))
    size = task.dim, task.num_examples
    if name == "ridge":
        algorithm = AlgorithmConfig(penalty=0.5 + drawn, step_size=0.05, num_steps=2)
        made = ridge(*size, penalty=0.5 + drawn, constants=_DIVIDING)
        return made, made, task, algorithm
    # Below 0.05 two steps in three are stable on every prompt of four examples.
    algorithm = AlgorithmConfig(penalty=None, step_size=0.02 + 0.03 * drawn, num_steps=_STEPS)
    made = gradient_descent(
        *size,
        step_size=algorithm.step_size,
        num_steps=algorithm.num_steps,
        copies=2 if name == "two_copies" else 1,
        constants=_CONSTANTS,
    )
    if name != "rotated":
        return made, made, task, algorithm
    width = made.config.width
    turn = torch.randn(width, width, generator=rng, dtype=torch.float64)
    return Rotated(made, torch.linalg.qr(turn).Q), made, task, algorithm


def register_sets(
    network: ConstructedTransformer, span: Float[Tensor, "width span"]
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every set of the program's registers that vary, with the unit vectors of its rows (H, rows).

    Args:
        network: the constructed network.
        span: orthonormal columns that its states vary in.
    """
    identity = torch.eye(network.config.width).to(span)
    own = {
        name: identity[:, torch.as_tensor(rows).unique()]
        for name, rows in network.rows.items()
        if name not in network.rows.RESERVED
    }
    own = {name: rows for name, rows in own.items() if (span.mT @ rows).norm() > LEAST_SINE}
    for size in range(1, len(own) + 1):
        for names in itertools.combinations(own, size):
            yield names, torch.cat([own[name] for name in names], 1).unique(dim=1)


@torch.no_grad()
def held_variables(
    name: str, config: AlignmentConfig, seed: int = 0, num_pairs: int = 128
) -> pd.DataFrame:
    """Which variables a network holds, where, by exchanging its own rows.

    Args:
        name: of `NETWORKS`.
        config: causal models and positions.
        seed: of the network.
        num_pairs: pairs that score.

    Returns:
        ``layer``, ``positions``, ``model``, ``truth`` (one of `TRUTHS`), ``registers`` (the set
        that carries the variable in the fewest dimensions), ``rows_rank`` (of its states' span) and
        ``rows_share``.
    """
    _, network, task, algorithm = build_network(name, seed)
    model, models = frozen(network), build_causal_models(config.models)
    seen = config.examples_for(task.dim, task.num_examples)
    pairs = PromptPairs.draw(task, num_pairs, seen, seed, "held variables", torch.float64)
    rows = []
    for states in layer_pairs(model, pairs):
        known = Counterfactuals.of(models, pairs, states.unchanged, algorithm.build())
        scales = {causal: Scale.fit(causal, known) for causal in models}
        for positions in config.positions:
            asked = [n for n, m in models.items() if positions == "query" or not m.in_query_only]
            span = natural_span(states, positions)
            whole = exchange(model, states, positions, span[None])[0]
            changed = (whole - states.unchanged).square().mean() / states.unchanged.var()
            read = changed >= config.least_change  # what is not read is carried by no register
            parts = (model, network, states, positions, span)
            tried = _exchange_registers(*parts) if read else []
            for causal in asked:
                shares = [mean_share(scales[causal], answer, known) for *_, answer in tried]
                rows.append([states.layer, positions, causal, *_truth(tried, shares, span)])
    columns = [*CELL, "truth", "registers", "rows_rank", "rows_share"]
    return pd.DataFrame(rows, columns=columns)


def _exchange_registers(
    model: Any, network: ConstructedTransformer, states: LayerPairs, positions: str, span: Tensor
) -> list[tuple[str, int, Tensor]]:
    """Every set of registers, exchanged within the span of natural states, of that rank; and, of
    rank 0, as it is.
    """
    tried = []
    for names, rows in register_sets(network, span):
        left, cosines, _ = torch.linalg.svd(span.mT @ rows, full_matrices=False)
        inside = span @ left[:, cosines > LEAST_SINE]
        if not inside.shape[1]:
            continue
        for rank, basis in ((inside.shape[1], inside), (0, rows)):
            answer = exchange(model, states, positions, basis[None])[0]
            tried.append((" ".join(names), rank, answer))
    return tried


def _truth(
    tried: list[tuple[str, int, Tensor]], shares: list[float], span: Tensor
) -> tuple[str, str, int, float]:
    """The truth, and the set of registers that shows it."""
    enough = [at for at, share in enumerate(shares) if share >= HELD]
    inside = [at for at in enough if tried[at][1]]
    if inside:
        at = min(inside, key=lambda at: (tried[at][1], -shares[at]))
        truth = "held" if tried[at][1] < span.shape[1] else "whole"
    elif enough:
        at, truth = enough[0], "inseparable"
    elif not shares:
        return "absent", "", 0, float("nan")
    else:
        at, truth = max(range(len(shares)), key=shares.__getitem__), "absent"
    return truth, tried[at][0], tried[at][1], shares[at]


def calibrate(name: str, config: AlignmentConfig, seed: int) -> pd.DataFrame:
    """The search, its controls and its verdicts on one network, beside what the network holds.

    Args:
        name: of `NETWORKS`.
        config: as for a learner; its algorithm and its number of examples are the network's.
        seed: of the network, of prompts and of searches.

    Returns:
        `decide`'s columns, `held_variables`' columns, ``network`` and ``seed``.
    """
    model, _, task, algorithm = build_network(name, seed)
    changes = {"algorithm": algorithm, "examples_seen": None, "ranks": None, "layers": None}
    changes["positions"] = config.calibration_positions
    changes["num_train_pairs"] = min(config.num_train_pairs, MOST_PAIRS)
    changes["num_test_pairs"] = min(config.num_test_pairs, MOST_PAIRS // 2)
    changes["search"] = config.search.model_copy(
        update={
            "num_steps": min(config.search.num_steps, MOST_STEPS),
            "batch_size": min(config.search.batch_size, MOST_BATCH),
        }
    )
    own = config.model_copy(update=changes)
    found = align(model, task, own, seed, dtype=torch.float64).assign(source=LEARNER)
    cells = candidates(found, own.rule)
    if cells:
        shuffled = align(model, task, own, seed, cells, shuffle=True, dtype=torch.float64)
        found = pd.concat((found, shuffled.assign(source="shuffled")), ignore_index=True)
    verdicts = decide(found, own.rule)
    truths = held_variables(name, own, seed)
    searched = truths["rows_rank"].isin(found["rank"])
    truths.loc[(truths["truth"] == "held") & ~searched, "truth"] = "large"
    return verdicts.merge(truths, on=CELL).assign(network=name, seed=seed)


def calibration_summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each network and seed: held variables that were found, and found ones that are absent.

    Of variables that are neither held nor absent (`TRUTHS`) no subspace can be named; they are
    counted apart.
    """
    counted = table.assign(found=table["verdict"] == FOUND)
    rows = []
    for (network, seed), part in counted.groupby(["network", "seed"], sort=False):
        row: dict[str, Any] = {"network": network, "seed": seed}
        for truth in TRUTHS:
            chosen = part[part["truth"] == truth]
            row |= {truth: len(chosen), f"{truth}_found": int(chosen["found"].sum())}
        held = part[(part["truth"] == "held") & part["found"]]
        row["right_rank"] = int((held["rank"] == held["rows_rank"]).sum())
        rows.append(row)
    columns = ["network", "seed", *(truth + end for truth in TRUTHS for end in ("", "_found"))]
    return pd.DataFrame(rows, columns=[*columns, "right_rank"])
