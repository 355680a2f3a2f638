"""The measures that the report shows, each in a sentence and a formula, and where more is said."""

from typing import NamedTuple


class Definition(NamedTuple):
    """A measure: its name, what it is, and the page of the documentation that defines it."""

    name: str
    words: str
    page: str


_REFERENCE = "docs/reference/definitions.md"

DEFINITIONS = {
    "loss": Definition(
        "Training loss",
        "Mean of (ŷₖ − yₖ)² over the batch's prompts and all numbers of examples k.",
        _REFERENCE,
    ),
    "spd": Definition(
        "Squared prediction difference, SPD",
        "SPDₖ = E (A₁(D)(x′) − A₂(D)(x′))²: the mean squared difference of two predictors' answers "
        "to the same query after k examples. As a share of Var(y), 1 is about what predicting 0 "
        "gives.",
        _REFERENCE,
    ),
    "ilwd": Definition(
        "Implicit linear weight difference, ILWD",
        "ILWDₖ = E ‖ŵ₁(D) − ŵ₂(D)‖², where ŵ(D) is the linear map that best describes a "
        "predictor's answers to many queries behind one prompt.",
        _REFERENCE,
    ),
    "risk": Definition(
        "Squared error",
        "Mean of (ŷₖ − yₖ)² against the label, of every predictor on the same prompts.",
        _REFERENCE,
    ),
    "linearity": Definition(
        "Linearity",
        "R² of the regression behind the implicit weights: 1 if the predictor is linear in the "
        "query.",
        _REFERENCE,
    ),
    "domain": Definition(
        "Domain of validity",
        "The shifts of the prompts' distribution under which a candidate, its free numbers fitted "
        "at home and then frozen, still explains 99 % of the variance of the learner's "
        "predictions.",
        "docs/reference/identification.md",
    ),
    "filter": Definition(
        "Spectral filter",
        "f(s) in ŵ = V f(S) S⁻¹ Vᵀ Xᵀy, where s are the eigenvalues of XᵀX: ridge has s/(s + λ), "
        "least squares 1. Misfit: a family's squared error over that of the best filter of any "
        "shape, on held-out prompts.",
        "docs/reference/identification.md",
    ),
    "probe": Definition(
        "Probe error",
        "Squared error of a read-out trained on a layer's hidden states to give the target, over "
        "the target's variance, on held-out prompts.",
        "docs/reference/probing.md",
    ),
    "selectivity": Definition(
        "Selectivity",
        "The best control's error minus the probe's, as a share of the target's variance. Controls "
        "are an untrained learner, one trained on a single w, and random targets.",
        "docs/reference/probing.md",
    ),
    "moved": Definition(
        "Moved fraction",
        "How far an edit takes the prediction along the way from its own answer (0) to that of the "
        "donor prompt (1).",
        _REFERENCE,
    ),
    "progress": Definition(
        "Nearest number of steps",
        "The m for which m steps of an algorithm predict most nearly what is read from a layer.",
        "docs/reference/probing.md",
    ),
    "alignment": Definition(
        "Share of a counterfactual",
        "1 − E(ŷₑ − c)² / E(c − βŷᵣ)²: ŷₑ the answer after an exchange, c what the causal model "
        "says it should be, ŷᵣ the answer before, β their regression. 1 is all, and 0 no more than "
        "the unchanged answer gives.",
        "docs/results/causality.md",
    ),
    "paths": Definition(
        "Share of the donor's answer",
        "How far the answer goes from the recipient's to the donor's when these edges alone are "
        "the donor's: 1 is all the way.",
        "docs/results/causality.md",
    ),
    "construction": Definition(
        "Relative error of a construction",
        "Error of the network whose weights are set by hand, against the algorithm that it carries "
        "out, over the size of the result.",
        "docs/results/construction.md",
    ),
    "nearest": Definition(
        "Nearest algorithm",
        "The candidate with the smallest SPD among those listed; the margin is the runner-up's SPD "
        "over its own. Nearest is not near: the share of Var(y) says how near.",
        _REFERENCE,
    ),
}
