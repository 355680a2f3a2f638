"""The kernels, interpreted on the CPU (on a GPU: compiled), against PyTorch's own arithmetic in
float64.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from incontext_linear.config import ModelConfig
from incontext_linear.learner.attention import causal_attention
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import generator
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.kernels import fused
from incontext_linear.training.optimizers import FlatOptimizer

pytest.importorskip("triton")
from incontext_linear.training.kernels import attention
from incontext_linear.training.kernels import branches as branch_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 5e-3 if DEVICE == "cuda" else 1e-5  # Triton's products of float32 are tf32 on a GPU
EPSILON = 1e-5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, f"draw {shape}"))


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


def on_device(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def grad_of(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def assert_near(result: torch.Tensor, reference: torch.Tensor) -> None:
    """Within rounding of the reference's size; a number never written is NaN and fails."""
    error = (result.cpu().double() - reference).abs().max()
    assert error < TOLERANCE * reference.abs().max().clamp_min(1.0)


def unwritten(*shape: int) -> torch.Tensor:
    return torch.full(shape, torch.nan, device=DEVICE)


@pytest.fixture
def few_programs(monkeypatch):
    """On the CPU, where the interpreter runs programs one by one."""
    if DEVICE == "cpu":
        monkeypatch.setattr(branch_kernels, "NUM_NORM_SUMS", 6)
        monkeypatch.setattr(branch_kernels, "NUM_GELU_SUMS", 2)


def check_add_norm(num_tokens: int, width: int) -> None:
    tensors = [draw(num_tokens, width, seed=seed) for seed in range(4)]
    vectors = [draw(width, seed=seed) for seed in range(3)]
    stream, branch, bias, scale, shift = leaves(*tensors[:2], *vectors)
    hidden = stream + branch + bias
    normed = F.layer_norm(hidden, (width,), scale, shift, EPSILON)
    ((hidden * tensors[2]).sum() + (normed * tensors[3]).sum()).backward()

    inputs = on_device(*tensors[:2], *vectors)
    result, gradient = unwritten(num_tokens, width), unwritten(num_tokens, width)
    new_stream = branch_kernels.add_norm(*inputs, EPSILON, result)
    assert_near(new_stream, hidden)
    assert_near(result, normed)
    sums = unwritten(branch_kernels.NUM_NORM_SUMS, 3 * width)
    branch_kernels.add_norm_backward(
        *on_device(tensors[2], tensors[3]), new_stream, inputs[3], EPSILON, sums, gradient
    )
    assert_near(gradient, grad_of(stream))
    assert_near(sums.sum(0), torch.cat([grad_of(leaf) for leaf in (scale, shift, bias)]))


@pytest.mark.slow
def test_add_norm_of_one_token_with_all_programs():
    check_add_norm(1, 16)


# One token, one tile, more programs than tiles, fewer, widths below and above a tile.
@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 16), (37, 32), (5, 1024), (600, 16)])
def test_add_norm_is_the_sums_layer_norm_and_so_is_its_gradient(num_tokens, width):
    check_add_norm(num_tokens, width)


def test_without_a_branch_the_stream_itself_is_normalised():
    stream, scale, shift = on_device(draw(7, 32), draw(32), draw(32, seed=1))
    result = unwritten(7, 32)
    assert branch_kernels.add_norm(stream, None, None, scale, shift, EPSILON, result) is stream
    assert_near(result, F.layer_norm(stream, (32,), scale, shift, EPSILON).cpu().double())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of what is meant to be infinite
def test_gelu_and_its_gradient_with_all_programs():
    check_gelu(1, 16)


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize(("num_tokens", "num_units"), [(1, 16), (37, 96), (300, 130)])
def test_gelu_and_its_gradient(num_tokens, num_units):
    check_gelu(num_tokens, num_units)


def check_gelu(num_tokens: int, num_units: int) -> None:
    source, bias, above = (
        draw(num_tokens, num_units),
        draw(num_units),
        draw(num_tokens, num_units, seed=1),
    )
    source[0, :4] = torch.tensor([-1e4, -20.0, 20.0, 1e4])  # where a careless formula overflows
    x, shift = leaves(source, bias)
    y = F.gelu(x + shift, approximate="tanh")
    y.backward(above.double())

    source, bias, above = on_device(source, bias, above)
    result, gradient = unwritten(num_tokens, num_units), unwritten(num_tokens, num_units)
    branch_kernels.gelu(source, bias, result)
    torch.testing.assert_close(result.cpu().double(), y.detach(), rtol=1e-5, atol=1e-5)
    sums = unwritten(branch_kernels.NUM_GELU_SUMS, num_units)
    branch_kernels.gelu_backward(above, source, bias, sums, gradient)
    assert_near(gradient, grad_of(x))
    assert_near(branch_kernels.sum_rows(sums[None], torch.float32)[0], grad_of(shift))


@pytest.mark.slow
@settings(max_examples=12)
@given(num_tokens=st.integers(1, 128), num_heads=st.sampled_from([1, 2, 4]))
def test_attention_and_its_gradient_at_every_length(num_tokens, num_heads):
    check_attention(num_tokens, num_heads)


# One block, a full one, one more token than that, and what two full ones hold.
@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [1, 64, 65, 79, 128])
def test_attention_at_the_edges_of_its_blocks(num_tokens):
    check_attention(num_tokens, 2)


def check_attention(num_tokens: int, num_heads: int) -> None:
    width = 16 * num_heads
    packed, bias, above = (
        draw(2, num_tokens, 3 * width),
        draw(3 * width),
        draw(2, num_tokens, width, seed=1),
    )
    x, shift = leaves(packed, bias)
    y = causal_attention(x + shift, num_heads)
    y.backward(above.double())

    packed, bias, above = on_device(packed, bias, above)
    mixed, gradient = unwritten(*above.shape), unwritten(*packed.shape)
    attention.forward(packed, num_heads, mixed, bias)
    assert_near(mixed, y.detach())
    sums = unwritten(2, 3 * width)
    attention.backward(above, packed, num_heads, gradient, bias, sums)
    assert_near(gradient, grad_of(x))
    assert_near(sums.sum(0), grad_of(shift))


def test_attention_without_a_bias():
    packed, result = draw(3, 11, 96), unwritten(3, 11, 32)
    attention.forward(packed.to(DEVICE), 2, result)
    assert_near(result, causal_attention(packed.double(), 2))


@pytest.fixture(params=[1, 3], ids="layers={}".format)
def model(request) -> Transformer:
    model = Transformer(3, 6, ModelConfig(num_layers=request.param, num_heads=2, width=32))
    model.initialize(generator(0, "weights"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1, name)))
    return model.to(DEVICE)


def gradients(model: Transformer, xs: torch.Tensor, ys: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.mse_loss(model(xs, ys), ys).backward()
    return {name: grad_of(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize("num_examples", [1, 4, 6])
def test_fused_blocks_give_the_predictions_and_the_gradients_of_plain_ones(
    model, num_examples, num_parts, monkeypatch
):
    xs, ys = on_device(draw(4, num_examples, 3), draw(4, num_examples))
    predictions, plain = model(xs, ys), gradients(model, xs, ys)
    monkeypatch.setattr(
        branch_kernels, "NUM_NORM_SUMS", 6
    )  # the interpreter runs programs one by one
    monkeypatch.setattr(branch_kernels, "NUM_GELU_SUMS", 2)
    if num_parts > 1:  # as where several processes share the gradients
        monkeypatch.setattr(fused, "NUM_DISTRIBUTED_PARTS", num_parts)
        monkeypatch.setattr(fused.dist, "is_initialized", lambda: True)
    targets = FlatOptimizer(
        model, TrainingConfig(), low_precision=False, compiled=False
    ).gradients()
    for target in targets.values():
        target.fill_(torch.nan)
    model.run_blocks = fused.FusedBlocks(model.blocks, targets)
    torch.testing.assert_close(model(xs, ys), predictions, rtol=TOLERANCE, atol=TOLERANCE)
    for name, gradient in gradients(model, xs, ys).items():
        assert_near(gradient, plain[name].cpu().double())
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    for matrix in matrices:
        assert targets.pop(matrix).data_ptr() == matrix.grad.data_ptr()
    assert all(target.isnan().all() for target in targets.values())


def test_gradients_that_do_not_lie_side_by_side_are_refused():
    model = Transformer(3, 6, ModelConfig(num_layers=2, num_heads=2, width=32))
    apart = {parameter: torch.empty(2, *parameter.shape)[0] for parameter in model.parameters()}
    with pytest.raises(ValueError, match="side by side, in the blocks' order"):
        fused.FusedBlocks(model.blocks, apart)(torch.zeros(1, 11, 32))


def test_what_the_kernels_cover():
    def covered(num_examples: int = 40, **config: Any) -> bool:
        return fused.is_covered(Transformer(2, num_examples, ModelConfig(num_layers=1, **config)))

    assert covered(width=512, num_heads=4)
    assert covered(width=64, num_heads=4)
    assert not covered(width=96, num_heads=3)  # no power of two
    assert not covered(width=32, num_heads=4)  # heads of 8 channels
    assert not covered(width=512, num_heads=2)  # of 256
    assert covered(width=64, num_heads=4, num_examples=64)
    assert not covered(width=64, num_heads=4, num_examples=65)  # 129 tokens
