"""The training loss: squared error at every prefix, averaged evenly or by each prefix's likelihood.

Paper, section 2: every prefix of a prompt is a training example, and the loss is the mean over
prompts and prefixes of the squared error, here `UniformLoss`. Its gradient is dominated by the
prefixes with
fewer examples than dimensions: their error is large and cannot be reduced, so most of it is noise.

`LikelihoodLoss` takes the predictions as the means of Gaussians whose variance depends on the
prefix alone. The negative log-likelihood of a prompt is then, up to constants,

    ½ Σ_k [ (ŷ_k − y_k)² / v_k + log v_k ],

and for given predictions it is least at v_k = E(ŷ_k − y_k)². With these variances put in, its
gradient is that of a mean of squared errors with weights 1 / v_k. A weight that does not depend on
the prompt changes no prefix's minimiser, which is the conditional mean E[y_k | prompt] under both
losses: the learning problem is the paper's, and only how prefixes trade against each other while
the learner cannot fit all of them has changed. Labels are all that it uses.

v_k is the running mean of the prefix's own error over past batches, plus a floor, so that a prefix
that is solved exactly keeps a finite weight.

For several learners that train together (`training.stacked`) all tensors have one more dimension,
the first, and every learner has a loss of its own.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from incontext_linear.training.config import TrainingConfig


class UniformLoss:
    """The paper's loss: the mean over prompts and prefixes of the squared error."""

    def __call__(
        self,
        predictions: Float[Tensor, "*learner batch example"],
        ys: Float[Tensor, "*learner batch example"],
    ) -> tuple[Float[Tensor, "*learner"], Float[Tensor, "*learner"]]:
        """The loss to descend on, and the mean squared error to report: here the same."""
        loss = (predictions - ys).square().mean((-2, -1))
        return loss, loss.detach()

    def reset(self) -> None:
        """Nothing is remembered."""

    def state(self) -> dict[str, Tensor]:
        """Nothing needs saving."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Nothing is restored."""


class LikelihoodLoss:
    """Squared errors weighted by the inverse of each prefix's running mean error.

    The weights are normalised to mean 1, so that learning rates mean the same under both losses,
    and come from earlier batches only. No weight exceeds another by more than the ratio of the
    largest running mean to the floor, plus one.

    Args:
        num_examples: n, prefixes of a prompt.
        floor: added to every running mean, as a share of the labels' mean square; > 0.
        momentum: of the running means, in (0, 1); the first batches are averaged evenly.
        device: where the predictions are.
        stack: leading dimensions of the predictions: () or (learners,).
    """

    def __init__(
        self,
        num_examples: int,
        floor: float,
        momentum: float,
        device: torch.device | str = "cpu",
        stack: tuple[int, ...] = (),
    ):
        self.floor, self.momentum = floor, momentum
        # The mean squared error of each prefix, and last the mean square of the labels.
        self.means = torch.zeros(*stack, num_examples + 1, device=device)
        self.count = torch.zeros(stack, device=device)

    def __call__(
        self,
        predictions: Float[Tensor, "*learner batch example"],
        ys: Float[Tensor, "*learner batch example"],
    ) -> tuple[Float[Tensor, "*learner"], Float[Tensor, "*learner"]]:
        """The loss to descend on, and the mean squared error to report."""
        errors = (predictions - ys).square().mean(-2)
        weights = self.weights()
        self._update(errors.detach(), ys)
        return (weights * errors).mean(-1), errors.detach().mean(-1)

    @torch.no_grad()
    def weights(self) -> Float[Tensor, "*learner example"]:
        """The weight of each prefix, of mean 1; before the first batch all are 1."""
        errors, label = self.means[..., :-1], self.means[..., -1:]
        inverse = 1 / (errors + self.floor * label).clamp_min(torch.finfo(errors.dtype).tiny)
        mean, begun = inverse.mean(-1, keepdim=True), self.count.unsqueeze(-1) > 0
        return torch.where(begun, inverse / mean, torch.ones_like(inverse))

    @torch.no_grad()
    def _update(self, errors: Tensor, ys: Tensor) -> None:
        new = torch.cat((errors, ys.square().mean((-2, -1)).unsqueeze(-1)), dim=-1)
        if dist.is_initialized():  # each process sees its share of the batch
            dist.all_reduce(new)
            new /= dist.get_world_size()
        kept = torch.clamp(self.count / (self.count + 1), max=self.momentum).unsqueeze(-1)
        self.means.mul_(kept).add_(new * (1 - kept))
        self.count.add_(1)

    def reset(self) -> None:
        """Forget all batches."""
        self.means.zero_()
        self.count.zero_()

    def state(self) -> dict[str, Tensor]:
        """The running means and their count, by name."""
        return {"loss.means": self.means, "loss.count": self.count}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.means.copy_(tensors["loss.means"])
        self.count.copy_(tensors["loss.count"])


Loss = UniformLoss | LikelihoodLoss


def build_loss(
    training: TrainingConfig,
    num_examples: int,
    device: torch.device | str = "cpu",
    stack: tuple[int, ...] = (),
) -> Loss:
    """The loss that the parameters name, for prompts of ``num_examples``; with a stack, one for
    each of its learners.
    """
    if training.loss == "uniform":
        return UniformLoss()
    return LikelihoodLoss(num_examples, training.loss_floor, training.loss_momentum, device, stack)
