"""What predictors do with tensors: dtypes, devices, gradients, memory, and refusals."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_predictors_properties import DIM, EQUIVARIANT, LINEAR, POOL, PREDICTORS, every, gaussian

from incontext_linear.predictors import DiscreteMMSE, OrdinaryLeastSquares, Ridge


@every
def test_float32_is_answered_with_the_float64_answer_rounded_once(name):
    xs, ys = gaussian(num_prompts=50, dtype=torch.float32)
    predictions = PREDICTORS[name](xs, ys)
    assert predictions.dtype == torch.float32
    assert torch.equal(predictions, PREDICTORS[name](xs.double(), ys.double()).float())


@every
def test_float32_queries_are_answered_in_float32(name):
    xs, ys = gaussian(dtype=torch.float32)
    answers = PREDICTORS[name].predict_queries(xs, ys, xs[:, :2])
    wide = PREDICTORS[name].predict_queries(xs.double(), ys.double(), xs[:, :2].double())
    assert torch.equal(answers, wide.float())


@pytest.mark.parametrize("name", LINEAR)
def test_weights_have_the_dtype_of_the_prompts(name):
    assert LINEAR[name].weights(*gaussian(dtype=torch.float32)).dtype == torch.float32


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.usefixtures("as_users_run_it")
def test_other_dtypes_are_refused(name, dtype):
    xs, ys = gaussian()
    with pytest.raises(
        ValueError, match=f"xs is {dtype}; predictors take torch.float32 and torch.float64"
    ):
        PREDICTORS[name](xs.to(dtype), ys.to(dtype))


@every
@pytest.mark.parametrize(
    ("xs_shape", "ys_shape"),
    [((3, 9), (3, 9)), ((3, 9, DIM), (3, 8)), ((3, 9, DIM), (3, 9, 1)), ((3, 0, DIM), (3, 0))],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_shapes_that_do_not_match_are_refused(name, xs_shape, ys_shape):
    with pytest.raises(ValueError, match=r"allowed are \(B, n, d\) and \(B, n\)"):
        PREDICTORS[name](torch.zeros(xs_shape), torch.zeros(ys_shape))


@every
@pytest.mark.usefixtures("as_users_run_it")
def test_queries_that_do_not_match_are_refused(name):
    xs, ys = gaussian()
    with pytest.raises(ValueError, match=rf"allowed is \(B, Q, d\) with B=3 and d={DIM}"):
        PREDICTORS[name].predict_queries(xs, ys, xs[..., :-1])
    with pytest.raises(ValueError, match="both must agree"):
        PREDICTORS[name].predict_queries(xs, ys, xs.float())
    with pytest.raises(ValueError, match="queries hold values that are not finite"):
        PREDICTORS[name].predict_queries(xs, ys, xs / 0)


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name, value):
    xs, ys = gaussian()
    xs[1, 2, 0] = value
    with pytest.raises(ValueError, match="xs holds values that are not finite"):
        PREDICTORS[name](xs, ys)


@every
def test_mixed_dtypes_are_refused(name):
    xs, ys = gaussian()
    with pytest.raises(ValueError, match="both must agree"):
        PREDICTORS[name](xs, ys.float())


def test_a_pool_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match=f"xs has dim 3; this pool's vectors have dim {DIM}"):
        DiscreteMMSE(POOL, 0.5)(*gaussian(dim=3))


@every
def test_values_up_to_the_largest_float_are_not_taken_for_infinite(name):
    xs, ys = gaussian()
    PREDICTORS[name](xs, ys.clone().fill_(1e307))


@every
def test_no_prompts_give_no_predictions(name):
    xs, ys = gaussian()
    assert PREDICTORS[name](xs[:0], ys[:0]).shape == (0, 9)
    assert PREDICTORS[name].predict_queries(xs[:0], ys[:0], xs[:0, :2]).shape == (0, 9, 2)


@every
def test_inputs_are_left_as_they_were(name):
    xs, ys = gaussian()
    before = xs.clone(), ys.clone()
    PREDICTORS[name](xs, ys)
    assert torch.equal(xs, before[0])
    assert torch.equal(ys, before[1])


@every
def test_strides_do_not_matter(name):
    xs, ys = gaussian()
    strided = xs.permute(2, 0, 1).contiguous().permute(1, 2, 0), ys.T.contiguous().T
    assert torch.equal(PREDICTORS[name](*strided), PREDICTORS[name](xs, ys))


@pytest.mark.slow
@every
def test_gradients_are_those_of_finite_differences(name):
    xs, ys = gaussian(num_prompts=2, num_examples=6)
    assert torch.autograd.gradcheck(
        PREDICTORS[name], (xs.requires_grad_(), ys.requires_grad_()), atol=1e-5
    )


@pytest.mark.slow
@every
def test_gradients_are_those_of_finite_differences_at_queries(name):
    xs, ys = gaussian(num_prompts=1, num_examples=5)
    queries = gaussian(num_prompts=1, num_examples=2, seed=1)[0]
    inputs = [tensor.requires_grad_() for tensor in (xs, ys, queries)]
    assert torch.autograd.gradcheck(PREDICTORS[name].predict_queries, inputs, atol=1e-5)


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_gradients_are_finite_on_repeated_and_zero_rows(name):
    xs, ys = gaussian()
    xs[:, 1], xs[:, 4] = xs[:, 0], 0
    xs, ys = xs.requires_grad_(), ys.requires_grad_()
    gradients = torch.autograd.grad(
        EQUIVARIANT[name](xs, ys).sum(), (xs, ys), materialize_grads=True
    )
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_reused_buffers_and_recorded_operations_give_the_same_numbers():
    xs, ys = gaussian(num_examples=12)
    for predictor in (OrdinaryLeastSquares(), Ridge(0.1)):
        assert torch.equal(predictor(xs, ys), predictor(xs.clone().requires_grad_(), ys).detach())


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_gives_the_numbers_of_the_cpu(name, dtype):
    xs, ys = gaussian(num_prompts=100, num_examples=20, dtype=dtype)
    predictions = PREDICTORS[name](xs.cuda(), ys.cuda())
    assert predictions.is_cuda
    torch.testing.assert_close(predictions.cpu(), PREDICTORS[name](xs, ys), rtol=1e-6, atol=1e-6)


MEASURE_MEMORY = Path(__file__).parent / "programs" / "measure_memory.py"


@pytest.mark.slow
def test_memory_stays_in_proportion_to_the_prompts():
    """Within 4 times the prompts: some 1.3 GB for 100,000 of them. A d×d matrix a prefix would be 8
    times.
    """
    output = subprocess.run(
        [sys.executable, str(MEASURE_MEMORY)], check=True, capture_output=True, text=True
    )
    prompts_in_kibibytes = 10_000 * 40 * 8 * 8 // 1024
    assert int(output.stdout) < 4 * prompts_in_kibibytes + 20_000
