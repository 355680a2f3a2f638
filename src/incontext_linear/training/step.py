"""One step of training: forward, backward, clip, update.

Speed comes from four switches that change no arithmetic but its precision: bfloat16 linear maps
with float32 master copies, compiled blocks and optimiser, blocks on this project's own kernels in
place of compiled ones (`kernels.fused`), and one captured CUDA graph a step. On a CPU, or with the
switches off, the same lines run plainly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.learner.base import Network
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import Prompts
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.kernels import fused, packed_attention
from incontext_linear.training.loss import build_loss
from incontext_linear.training.optimizers import FlatOptimizer

DDP_WARMUP_STEPS = 11
"""Steps that PyTorch asks for before a step with DistributedDataParallel is captured."""


class TrainingStep:
    """Forward, backward, clip, update: one call a batch.

    Args:
        model: the learner, on its device, in float32; trained in place.
        training: optimiser settings and the four speed switches. Where a switch is ``auto``, other
            networks than the transformer run plainly, since their speed was not measured.
        stack: leading dimensions of the model's parameters, of prompts and of losses: (), or
            (learners,) where several are trained at once (`training.stacked`).
        num_examples: n of the prompts; None: the longest that the learner takes.
    """

    def __init__(
        self,
        model: Network,
        training: TrainingConfig,
        stack: tuple[int, ...] = (),
        num_examples: int | None = None,
    ):
        self.model, self.device = model, next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        fast = on_gpu and isinstance(model, Transformer)
        self.low_precision = training.low_precision(on_gpu)
        self.compiled = fast if training.compile == "auto" else training.compile
        self.graphed = fast if training.cuda_graph == "auto" else on_gpu and training.cuda_graph
        self.optimizer = FlatOptimizer(model, training, self.low_precision, self.compiled, stack)
        longest = model.num_examples if num_examples is None else num_examples
        if longest is None:
            raise ValueError(
                "num_examples=None with a learner that takes prompts of any length; allowed: the "
                "number of examples of the prompts"
            )
        self.loss = build_loss(training, longest, self.device, stack)
        self._network = self._forward = self._build_forward(training)
        self._side_stream = torch.cuda.Stream() if self.graphed else None
        if dist.is_initialized():
            with torch.cuda.stream(
                self._side_stream
            ):  # where a graph that holds the all-reduce must begin
                self._forward = nn.parallel.DistributedDataParallel(model)
        self._graph: torch.cuda.CUDAGraph | None = None

    def _build_forward(self, training: TrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
        """The model, on kernels or compiled where the switches and the device allow it."""
        model: Any = self.model  # whose methods are replaced
        on_gpu = self.device.type == "cuda"
        wants_kernels = self.compiled if training.own_kernels == "auto" else training.own_kernels
        own = isinstance(model, Transformer) and on_gpu and self.low_precision and wants_kernels
        if own:
            packed_attention.install(model)
        if own and fused.is_covered(model):
            model.run_blocks = fused.FusedBlocks(model.blocks, self.optimizer.gradients())
            if self.compiled:
                model.embed, model.read = (
                    torch.compile(end, dynamic=False) for end in (model.embed, model.read)
                )
        elif self.compiled:
            for block in dict.fromkeys(getattr(model, "blocks", ())):
                if isinstance(block, nn.Module):
                    block.compile()
        return model

    def __call__(
        self, prompts: Prompts, learning_rate: float | Sequence[float]
    ) -> Float[Tensor, "*learner"]:
        """Train on one batch; returns its loss, still on the device (no synchronisation)."""
        self.optimizer.set_rates(learning_rate)
        if not self.graphed:
            return self._step(prompts.xs, prompts.ys)
        if self._graph is None:
            raise RuntimeError("call prepare(prompts) once before the first step of a graphed run")
        self._xs.copy_(prompts.xs)
        self._ys.copy_(prompts.ys)
        self._graph.replay()
        return self._loss

    def _step(self, xs: Tensor, ys: Tensor) -> Tensor:
        with self.autocast():
            predictions = self._forward(xs, ys)
        loss, error = self.loss(predictions.to(ys.dtype), ys)
        loss.sum().backward()  # of several learners each one's gradient is of its own loss alone
        self.optimizer.step()
        return error

    def autocast(self) -> torch.autocast:
        """The precision that the model computes in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision)

    @torch.no_grad()
    def predict(self, xs: Tensor, ys: Tensor) -> Tensor:
        """Predictions in the precision of training."""
        with self.autocast():
            return self._network(xs, ys)

    def prepare(self, prompts: Prompts) -> None:
        """Capture the graph, where there is to be one, by steps that leave the weights
        unchanged.
        """
        if not self.graphed:
            return
        self.optimizer.set_rates(0.0)
        self._xs, self._ys = prompts.xs.clone(), prompts.ys.clone()
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            for _ in range(DDP_WARMUP_STEPS if dist.is_initialized() else 3):
                self._step(self._xs, self._ys)
        torch.cuda.current_stream().wait_stream(self._side_stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._step(self._xs, self._ys)
        self.optimizer.reset()
        self.loss.reset()

    def weights(self) -> dict[str, Tensor]:
        """The model's weights in float32: of matrices kept in bfloat16, the master copies. And its
        buffers, where it has some.
        """
        buffers = {name for name, _ in self.model.named_buffers()}
        saved = self.model.state_dict()
        return self.optimizer.weights() | {n: t for n, t in saved.items() if n in buffers}

    def state(self) -> dict[str, Tensor]:
        """What a step depends on beside the weights, by name: moments, and the loss's means."""
        return self.optimizer.state() | self.loss.state()

    def load_state(self, saved: dict[str, Tensor], num_steps: int) -> None:
        """Go on from what `state` gave after so many steps."""
        self.optimizer.load_state(saved, num_steps)
        self.loss.load_state(saved)
