"""What figures call things: algorithms, targets, interventions and tokens in words, not code names.

Names that are not known here (a user's own) are shown as they are, with blanks.
"""

import re
from fractions import Fraction

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.tables import LEARNER

_ALGORITHMS = {
    LEARNER: "learner",
    "ols": "least squares",
    "zero": "predicting 0",
    "bayes": "Bayes (posterior mean)",
    "sgd": "one-pass SGD",
    "ridge": "ridge, λ fitted",
    "newton": "Newton",
    "gd": "gradient descent",
    "first_examples": "first m examples",
    "nearest_neighbors": "nearest neighbours",
    "weighted_neighbors": "weighted neighbours",
    "decaying_sgd": "SGD, decaying rate",
    "sgd_weight_decay": "SGD, weight decay",
    "covariance_descent": "preconditioned step",
    "chebyshev": "Chebyshev",
    "richardson": "Richardson",
    "gradient_flow": "gradient flow",
    "scaled": "least squares × c",
    "discrete_mmse": "posterior mean over the pool",
}
"""Those whose words are not their names: predictors of the parameters, and fitted families."""
_FAMILIES = {
    "ridge": "ridge, λ = {}",
    "gd": "gradient descent, {} steps",
    "newton": "Newton, {} iterations",
    "knn": "{} nearest neighbours",
    "first": "least squares on the first {}",
}
_PROMPTS = {
    "home": "prompts as in training",
    "pool": "prompts of the learner's own pool",
    "prior": "prompts of the prior",
}
_TARGETS = {
    "moment": "Xᵀy",
    "least_squares": "least-squares weights",
    "ridge": "ridge weights",
    "gram": "XᵀX",
}
_METHODS = {
    "minimal_edit": "minimal edit",
    "pattern_edit": "pattern edit",
    "interchange_attended": "interchange where the probe looks",
    "interchange_context": "interchange of the whole context",
}
_PROGRAMS = {
    "gradient_step": "one gradient step",
    "sherman_morrison": "one Sherman–Morrison update",
    "one_pass_sgd": "one-pass SGD",
    "gradient_descent": "batch gradient descent",
    "iterative_newton": "iterative Newton",
}
_NAME = re.compile(r"^(?P<family>[a-z]+)_(?P<number>\d+(?:\.\d+)?(?:/\d+)?)(?P<rest>_[a-z]+)?$")


def parse_algorithm(name: str) -> tuple[str, float | None]:
    """Family and number of a predictor's name: ``("ridge", 0.1)`` of ``ridge_0.1``; no number:
    None.
    """
    match = _NAME.match(name)
    if match is None:
        return name, None
    return match["family"], float(Fraction(match["number"]))


def algorithm_name(name: str) -> str:
    """A predictor or a fitted family in words: ``ridge, λ = 0.1`` for ``ridge_0.1``.

    A name that is not known here is shown as it is, with blanks.
    """
    if name in _ALGORITHMS:
        return _ALGORITHMS[name]
    match = _NAME.match(name)
    if match is None or match["family"] not in _FAMILIES:
        return name.replace("_", " ")
    words = _FAMILIES[match["family"]].format(match["number"])
    if match["number"] == "1":
        words = words.replace("steps", "step").replace("iterations", "iteration")
        words = words.replace("1 nearest neighbours", "the nearest neighbour")
        words = words.replace("the first 1", "the first example")
    elif match["family"] == "first":
        words += " examples"
    weights = (match["rest"] or "").removeprefix("_")
    return f"{words}, by {weights}" if weights else words


def prompts_name(name: str) -> str:
    """Which prompts learners are measured on, in words."""
    return _PROMPTS.get(name, name)


def shift_name(name: str) -> str:
    """A shift of the prompts in words: ``input scale`` for ``input_scale``."""
    return name.replace("_", " ")


def target_name(name: str) -> str:
    """A probe's target in words; of a dotted path the last part."""
    return _TARGETS.get(name, name.rpartition(".")[2])


def method_name(name: str) -> str:
    """An intervention in words; of a dotted path the last part."""
    if name.endswith("_random"):
        return f"random direction, norm of the {method_name(name.removesuffix('_random'))}"
    return _METHODS.get(name, name.rpartition(".")[2])


def program_name(name: str) -> str:
    """A constructed network's program, or an algorithm of several steps, in words."""
    return _PROGRAMS.get(name, name.replace("_", " "))


def readout_name(kind: str, hidden_units: int) -> str:
    """A read-out in words: ``linear``, ``MLP of 64 units``."""
    return f"MLP of {hidden_units} units" if hidden_units else kind


def token_names(num_tokens: int) -> list[str]:
    """x₁ y₁ x₂ …, as tick labels."""
    below = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return [
        f"{'xy'[index % 2]}{str(index // 2 + 1).translate(below)}" for index in range(num_tokens)
    ]


def describe_run(task: TaskConfig, model: LearnerConfig, seed: int) -> str:
    """Which size and seed a figure shows."""
    noise = f", noise {task.noise_std:g}" if task.noise_std else ""
    return f"d = {task.dim}, {task.num_examples} examples{noise} · {model.words} · seed {seed}"


def describe_measured(task: TaskConfig, model: LearnerConfig, seed: int) -> str:
    """As `describe_run`, of a figure with intervals: those of one training are over prompts."""
    return f"{describe_run(task, model, seed)} · intervals over prompts"


def describe_constructed(task: TaskConfig, seed: int) -> str:
    """As `describe_run`, of the network whose weights are set by hand."""
    return (
        f"d = {task.dim}, {task.num_examples} examples · constructed gradient descent · seed {seed}"
    )
