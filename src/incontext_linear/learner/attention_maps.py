"""Where a learner's heads look, averaged over prompts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from incontext_linear.config import resolve_device
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import Transformer


@torch.no_grad()
def average_attention(
    learner: Learner, prompts: Mapping[str, Tensor], device: str, num_prompts: int = 256
) -> dict[str, Tensor]:
    """The learner's attention weights (L, M, T, T), averaged over prompts, as ``attention``; of
    a learner that shows none (no ``attention_weights``) L and M are 0.
    """
    where = resolve_device(device)
    model = on_device(learner.model, where)
    if not isinstance(model, Transformer):
        num_tokens = learner.task.num_tokens
        return {"attention": torch.zeros(0, 0, num_tokens, num_tokens)}
    xs, ys = (prompts[name][:num_prompts].to(where) for name in ("xs", "ys"))
    total = sum(
        model.attention_weights(*batch).sum(1)
        for batch in zip(xs.split(32), ys.split(32), strict=True)
    )
    return {"attention": (total / len(xs)).cpu()}
