"""The chapter on the paper's proof as running networks."""

import pandas as pd

from incontext_linear.figures.construction import SIZE_LABELS
from incontext_linear.figures.interactive import Panel, curves, short
from incontext_linear.figures.words import program_name
from incontext_linear.report.content import Chapter, Results, Shown

DIMENSION = "dimension d"


def construction(results: Results) -> Chapter | None:
    """Errors and sizes of transformers whose weights are set by hand."""
    if not results.has("construction_errors", "construction_sizes"):
        return None
    errors, sizes = results.table("construction_errors"), results.table("construction_sizes")
    precise = errors[errors["dtype"] == "float64"]["relative_error"].max()
    lead = (
        "Transformers whose weights are set by hand carry out the paper's algorithms; the largest "
        f"relative error in float64 is {short(float(precise))}. This shows that a transformer can, "
        "not that a trained one does.",
    )
    panels = [
        Panel(
            rows, "dim", "program", str(dtype), DIMENSION, "relative error",
            ("relative_error",), program_name, log_x=True, log_y=True,
        )
        for dtype, rows in errors.groupby("dtype", sort=False)
    ]  # fmt: skip
    grown = [
        Panel(
            sizes, "dim", "program", label[0].upper() + label[1:], DIMENSION, label,
            (size,), program_name, log_x=True, log_y=size != "layers",
        )
        for size, label in SIZE_LABELS.items()
    ]  # fmt: skip
    shown = [
        Shown("Relative error", _ERRORS, "construction", curves(panels)),
        Shown("Sizes", _SIZES, "construction", curves(grown)),
    ]
    if results.has("construction_growth"):
        growth = results.table("construction_growth")
        table = pd.DataFrame(
            {
                "program": [program_name(str(name)) for name in growth["program"]],
                "size": growth["size"].str.replace("_", " "),
                "exponent of d": growth["exponent"],
            }
        )
        shown.append(Shown("How sizes grow", _GROWTH, "construction", table=table))
    return Chapter(lead, tuple(shown))


_ERRORS = "Error of each constructed network against its algorithm, a panel a number format."
_SIZES = "Layers, hidden rows and MLP width that each construction needs. Curves may coincide."
_GROWTH = "Exponent of a power law in d fitted to the largest sizes."
