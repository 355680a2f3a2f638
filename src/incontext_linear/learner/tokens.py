"""Joint tokens: one token holds an example's x and y (von Oswald et al. 2023).

The paper's own tokens keep x and y apart (`incontext_linear.transformer.tokenize`). To predict at
all n prefixes in one pass, each example needs one token without its y, the query, and one with it:
the prompt becomes (x₁, 0) (x₁, y₁) (x₂, 0) … (xₙ, 0), 2n−1 tokens. Queries are seen by nobody but
themselves.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from incontext_linear.tasks import Xs, Ys


def joint_tokens(xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
    """Queries [0, x] at the even places, examples [y, x] at the odd ones; shape (B, 2n−1, d+1)."""
    labels = torch.stack((torch.zeros_like(ys), ys), dim=2).flatten(1)
    return torch.cat((labels.unsqueeze(-1), xs.repeat_interleave(2, dim=1)), dim=-1)[:, :-1]


def visible_tokens(
    num_tokens: int, device: torch.device | str = "cpu"
) -> Bool[Tensor, "token seen"]:
    """Which tokens each token sees: the examples up to it, and itself."""
    place = torch.arange(num_tokens, device=device)
    earlier_examples = (place <= place[:, None]) & (place % 2 == 1)
    return earlier_examples | (place == place[:, None])
