"""The optimisers on flat vectors against PyTorch's own."""

import pytest
import torch
from torch import nn

from incontext_linear.config import ModelConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import generator
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.optimizers import FlatOptimizer, orthogonalize

RATE = 1e-2


def make_model() -> Transformer:
    config = ModelConfig(num_layers=2, num_heads=2, width=16)
    return Transformer(3, 5, config).initialize(generator(0, "initial weights"))


def reference(model: Transformer, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """PyTorch's optimisers, for packed projections cut into three."""
    matrices = (
        [p for p in model.blocks.parameters() if p.ndim == 2]
        if training.optimizer == "muon"
        else []
    )
    taken = {id(parameter) for parameter in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    decay = training.weight_decay
    betas = (training.beta1, training.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=RATE, betas=betas, weight_decay=decay)
    ]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=RATE, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers


@pytest.mark.parametrize(("optimizer", "tolerance"), [("adamw", 1e-6), ("muon", 5e-3)])
def test_updates_are_those_of_pytorch(optimizer, tolerance):
    # PyTorch's Muon rounds to bfloat16, and orthogonalises packed projections whole: those are left
    # out.
    training = TrainingConfig(optimizer=optimizer, weight_decay=0.1, gradient_clip=0.5)
    ours, theirs, rng = make_model(), make_model(), torch.Generator().manual_seed(0)
    flat, references = FlatOptimizer(ours, training, False, False), reference(theirs, training)
    for _ in range(3):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=rng)
            other.grad = mine.grad.clone()
        nn.utils.clip_grad_norm_(theirs.parameters(), training.gradient_clip)
        flat.set_rates(RATE)
        flat.step()
        for other in references:
            other.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if optimizer == "adamw" or "project_in.weight" not in name:
            assert (mine - other).norm() <= tolerance * other.norm(), name


def test_the_model_holds_views_and_the_masters_its_numbers():
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flat = FlatOptimizer(model, TrainingConfig(), low_precision=True, compiled=False)
    assert set(flat.weights()) == set(before)
    for name, tensor in flat.weights().items():
        assert torch.equal(tensor, before[name])
    parameters = dict(model.named_parameters())
    assert parameters["blocks.0.mlp_in.weight"].dtype == torch.bfloat16
    assert parameters["blocks.0.mlp_norm.weight"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64), (2, 64, 16)])
def test_orthogonalize_keeps_directions_and_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ orthogonalize(matrices) @ right.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert 0.3 < diagonal.min() < diagonal.max() < 1.3
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3
