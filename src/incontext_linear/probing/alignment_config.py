"""Parameters of distributed alignment search, its controls and the rule by which it decides."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from incontext_linear.config import (
    BootstrapConfig,
    Config,
    Fraction,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
)
from incontext_linear.probing.causal_models import (
    CAUSAL_MODELS,
    Algorithm,
    build_causal_models,
)
from incontext_linear.probing.config import Iterations
from incontext_linear.probing.exchange import POSITIONS, positions_mask


def _check_model(name: str) -> str:
    build_causal_models([name])
    return name


def _check_positions(kind: str) -> str:
    positions_mask(kind, 3)
    return kind


Models = Annotated[tuple[Annotated[str, AfterValidator(_check_model)], ...], Field(min_length=2)]
Positions = Annotated[
    tuple[Annotated[str, AfterValidator(_check_positions)], ...], Field(min_length=1)
]


NETWORKS = ("gradient_descent", "two_copies", "rotated", "ridge")
Network = Literal["gradient_descent", "two_copies", "rotated", "ridge"]


class AlgorithmConfig(Config):
    """The algorithm whose variables are exchanged; `Algorithm` says what each number is."""

    penalty: PositiveFloat | None = 1e-3
    step_size: PositiveFloat = 0.02
    num_steps: Iterations = 4

    def build(self) -> Algorithm:
        """The algorithm itself."""
        return Algorithm(self.penalty, self.step_size, self.num_steps)


class SearchConfig(Config):
    """How subspaces are learned from a start in closed form: by Levenberg-Marquardt where they have
    fewer numbers (directions that vary × rank) than ``batch_size``, else along the gradient.
    """

    gradient_steps: PositiveInt = 32
    gradient_batch: PositiveInt = 32
    """Pairs a step along the gradient."""
    learning_rate: PositiveFloat = 0.05
    """Length of the first of them: of the basis's root mean square change."""
    num_steps: PositiveInt = 10
    """Of Levenberg-Marquardt."""
    batch_size: PositiveInt = 64
    """Pairs a step of Levenberg-Marquardt."""
    damping: PositiveFloat = 0.01
    """Of the first step."""
    random_starts: NonNegativeInt = 0
    """Searches from random subspaces besides; the best on validation pairs is kept."""


class RuleConfig(Config):
    """When a variable counts as found in a layer and at positions. Thresholds by judgement; what
    they find in networks that are known is in docs/results/causality.md.
    """

    share: Fraction = 0.9
    """Least share of the counterfactual that is explained, in units of the ceiling."""
    specific: Fraction = 0.5
    """Least specificity, lower limit."""
    control: Fraction = 0.5
    """Largest share that a control may reach, in units of the learner's."""
    read: Fraction = 0.8
    """Least share that is left, in units of the whole, without the subspace's dormant part."""
    ceiling: Fraction = 0.5
    """Below this ceiling a variable cannot be asked for: the learner does not answer as the causal
    model says even where its prompt has the exchanged value.
    """
    unique: Fraction = 0.02
    """Below this share of its own, a counterfactual is not told apart from the others'."""


class PathsConfig(Config):
    """Through which edges the query reads: how they are chosen and scored."""

    num_pairs: Annotated[PositiveInt, Field(ge=20)] = 256
    """Pairs that choose, and as many that score."""
    faithful: OpenFraction = 0.95
    """Share of the donor's answer at which no more edges are added."""
    max_edges: PositiveInt = 16
    num_random_sets: PositiveInt = 16
    num_prompts: PositiveInt = 512
    """Prompts of the head ablation and of the attention patterns."""


class ReadingsConfig(Config):
    """What is read from the query's token: answers of gradient descent and of ridge regression."""

    num_prompts: PositiveInt = 16384
    """Prompts that read-outs are fitted on; drawn as they are needed, never stored."""
    num_test_prompts: Annotated[PositiveInt, Field(ge=20)] = 1024
    """Prompts that choose the best number, and as many that score."""
    step_size: PositiveFloat = 0.02
    gradient_steps: Annotated[tuple[Iterations, ...], Field(min_length=1)] = (
        1,
        2,
        4,
        8,
        16,
        32,
        64,
    )
    """Ascending."""
    penalties: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        32.0,
        8.0,
        2.0,
        0.5,
        0.125,
        0.03,
        0.001,
    )

    @field_validator("gradient_steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"gradient_steps {list(steps)} given; allowed: ascending numbers")
        return steps


class AlignmentConfig(Config):
    """What is searched for, where, on how many pairs, and by which rule it counts as found."""

    models: Models = tuple(CAUSAL_MODELS)
    """Causal models by name, or dotted paths of one's own."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Layers, 0 being the embedding; None: all of them."""
    positions: Positions = POSITIONS
    ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Ranks of the subspaces; None: 1, d, d + 1, 2d, d(d + 1)/2 and d(d + 3)/2: the dimensions of
    y, of w or Xᵀy, of an example, of x' and w, of XᵀX, and of XᵀX and Xᵀy together.
    """
    examples_seen: PositiveInt | None = None
    """k; None: 3d, or as many as the learner takes."""
    num_train_pairs: PositiveInt = 2048
    num_validation_pairs: PositiveInt = 256
    """Pairs that choose among starts."""
    num_test_pairs: Annotated[PositiveInt, Field(ge=20)] = 512
    least_change: Fraction = 0.02
    """Where exchanging whole states changes less than this share of the answers' variance, nothing
    is searched for: later layers do not read these states.
    """
    num_random: PositiveInt = 4
    """Random subspaces of each rank."""
    read_share: OpenFraction = 0.9999
    """Share of the answer's squared gradient that the directions hold that later layers read."""
    search: SearchConfig = SearchConfig()
    rule: RuleConfig = RuleConfig()
    paths: PathsConfig = PathsConfig()
    readings: ReadingsConfig = ReadingsConfig()
    calibration: tuple[Network, ...] = NETWORKS
    """Constructed networks on which the search is tried; none: no calibration."""
    calibration_seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (5,)
    """Of their numbers, prompts and searches; the rule was made on seeds 0 to 2."""
    calibration_positions: Positions = ("query", "y_tokens")
    """Where variables are searched for in them: the tokens that such networks compute at."""
    bootstrap: BootstrapConfig = BootstrapConfig()

    def ranks_for(self, dim: int, width: int) -> tuple[int, ...]:
        """The ranks, ascending, none larger than the width."""
        matrix = dim * (dim + 1) // 2
        ranks = self.ranks or (1, dim, dim + 1, 2 * dim, matrix, matrix + dim)
        return tuple(sorted({min(rank, width) for rank in ranks}))

    def examples_for(self, dim: int, num_examples: int) -> int:
        """k for a learner of d dimensions and prompts of n examples.

        Raises:
            ValueError: if a prompt has no query left behind k examples.
        """
        seen = self.examples_seen or min(3 * dim, num_examples - 1)
        if not 0 < seen < num_examples:
            raise ValueError(
                f"alignment.examples_seen: {seen} examples leave no query; allowed: 1 to "
                f"{num_examples - 1} (task.num_examples is {num_examples})"
            )
        return seen
