"""Shapes that recur in signatures: B prompts of n examples in d dimensions.

Within one call the names of the axes mean the same numbers, here and beside these aliases.
"""

from jaxtyping import Float
from torch import Tensor

Xs = Float[Tensor, "batch example dim"]
"""Inputs (B, n, d)."""
Ys = Float[Tensor, "batch example"]
"""Labels, or predictions of them, (B, n)."""
