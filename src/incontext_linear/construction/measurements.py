"""What the theorems promise, measured on the built networks: sizes, and errors against the
textbook.

Tables come out tidy, one measurement a row. The reference is always the textbook predictor in
float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import TaskConfig
from incontext_linear.construction import programs
from incontext_linear.construction.assembler import ConstructedTransformer
from incontext_linear.construction.config import Constants, ConstructionConfig, DtypeName
from incontext_linear.learner.devices import one_thread
from incontext_linear.predictors import GradientDescent, OnePassSGD, Predictor, Ridge
from incontext_linear.tasks import Xs, Ys, draw_prompts

DTYPES: dict[DtypeName, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}
SIZE_NUM_EXAMPLES = 2
"""Prompt length of the size table: one example to learn from and one query, as in the theorems."""


class Measured(NamedTuple):
    """A program and the textbook predictor that it should equal."""

    build: Callable[..., ConstructedTransformer]
    arguments: Callable[[ConstructionConfig], dict[str, float]]
    reference: Callable[[ConstructionConfig], Predictor]
    single_step: bool = False


class LatestExample:
    """A predictor that is shown the latest example alone: the reference of the single-step
    programs.

    Args:
        predictor: what predicts from that one example.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n); ``[:, k]`` depends on ``xs[:, k-1:k+1]`` and ``ys[:, k-1]`` only."""
        predictions = torch.zeros_like(ys)
        if ys.shape[1] > 1:
            pairs = (
                xs.unfold(1, 2, 1).transpose(-1, -2),
                ys.unfold(1, 2, 1),
            )  # (B, n-1, 2, d), (B, n-1, 2)
            after_one = self.predictor(*(part.flatten(0, 1).contiguous() for part in pairs))[:, 1]
            predictions[:, 1:] = after_one.unflatten(0, (len(ys), -1))
        return predictions


PROGRAMS: dict[str, Measured] = {
    "gradient_step": Measured(
        programs.gradient_step,
        lambda c: {"step_size": c.step_size, "penalty": c.penalty},
        lambda c: LatestExample(OnePassSGD(c.step_size, c.penalty)),
        single_step=True,
    ),
    "sherman_morrison": Measured(
        programs.sherman_morrison,
        lambda c: {"penalty": c.penalty},
        lambda c: LatestExample(Ridge(c.penalty)),
        single_step=True,
    ),
    "one_pass_sgd": Measured(
        programs.one_pass_sgd,
        lambda c: {"step_size": c.step_size, "penalty": c.penalty},
        lambda c: OnePassSGD(c.step_size, c.penalty),
    ),
    "ridge": Measured(
        programs.ridge,
        lambda c: {"penalty": c.penalty},
        lambda c: Ridge(c.penalty),
    ),
    "gradient_descent": Measured(
        programs.gradient_descent,
        lambda c: {"step_size": c.step_size, "num_steps": c.num_steps, "penalty": c.penalty},
        lambda c: GradientDescent(c.step_size, c.num_steps, c.penalty),
    ),
}


def relative_error(
    predictions: Float[Tensor, "*prediction"], reference: Float[Tensor, "*prediction"]
) -> float:
    """The largest difference at any prompt and prefix, over the reference's root mean square."""
    return float((predictions - reference).abs().max() / reference.square().mean().sqrt())


def size_table(config: ConstructionConfig) -> pd.DataFrame:
    """Layers, distinct layers, hidden rows, heads, MLP width and parameters of every program and
    d.
    """
    table = []
    for name, measured in PROGRAMS.items():
        for dim in config.size_dims:
            with one_thread():
                arguments = measured.arguments(config)
                model = measured.build(dim, SIZE_NUM_EXAMPLES, **arguments, dtype=torch.float32)
            table.append(
                {
                    "program": name,
                    "dim": dim,
                    "layers": len(model.blocks),
                    "distinct_layers": len(set(model.blocks)),
                    "hidden_rows": model.config.width,
                    "heads": model.config.num_heads,
                    "mlp_width": model.config.mlp_units,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                }
            )
    return pd.DataFrame(table)


def growth_table(sizes: pd.DataFrame) -> pd.DataFrame:
    """How ``hidden_rows`` and ``mlp_width`` grow with d: fitted exponent, and fitted quadratic
    polynomial.
    """
    table = []
    for name, rows in sizes.groupby("program", sort=False):
        dims = rows["dim"].to_numpy(dtype=float)
        for size in ("hidden_rows", "mlp_width"):
            counts = rows[size].to_numpy(dtype=float)
            powers = dict(
                zip(("quadratic", "linear", "constant"), np.polyfit(dims, counts, 2), strict=True)
            )
            table.append(
                {"program": name, "size": size, "exponent": fit_exponent(dims, counts), **powers}
            )
    return pd.DataFrame(table)


def fit_exponent(dims: Float[np.ndarray, " size"], counts: Float[np.ndarray, " size"]) -> float:
    """Least-squares fit of counts by constant + factor·d^exponent; the exponent, to 0.01.

    The constant matters: 3d + 15 looks like d^0.6 to a straight line through logarithms at small d.
    """
    misfits = {}
    for exponent in np.arange(0.5, 3.0, 0.01):
        terms = np.stack((np.ones(len(dims)), dims**exponent), axis=1)
        factors = np.linalg.lstsq(terms, counts, rcond=None)[0]
        misfits[round(float(exponent), 2)] = np.square(terms @ factors - counts).sum()
    return min(misfits, key=misfits.get)


def error_table(config: ConstructionConfig, seed: int) -> pd.DataFrame:
    """Relative error of every program at every d, in float64 and float32, with the chosen
    constants.
    """
    table = []
    for dim in config.error_dims:
        prompts = _draw(config, dim, config.num_examples, config.num_prompts, seed)
        for name in PROGRAMS:
            for dtype in DTYPES:
                error = measure(name, prompts, config, dtype, config.constants(dtype))
                table.append({"program": name, "dim": dim, "dtype": dtype, "relative_error": error})
    return pd.DataFrame(table)


def constants_table(config: ConstructionConfig, seed: int) -> pd.DataFrame:
    """Relative error of every program while one constant varies and the others keep their chosen
    value.
    """
    prompts = _draw(
        config, config.sweep_dim, config.sweep_num_examples, config.sweep_num_prompts, seed
    )
    sweeps = {
        "saturation": config.saturations,
        "padding": config.paddings,
        "gelu_scale": config.gelu_scales,
    }
    table = []
    for dtype in DTYPES:
        chosen = config.constants(dtype)
        for constant, values in sweeps.items():
            for value in sorted({*values, getattr(chosen, constant)}):
                varied = chosen.model_copy(update={constant: value})
                for name in PROGRAMS:
                    table.append(
                        {
                            "constant": constant,
                            "value": value,
                            "chosen": value == getattr(chosen, constant),
                            "program": name,
                            "dtype": dtype,
                            "relative_error": measure(name, prompts, config, dtype, varied),
                        }
                    )
    return pd.DataFrame(table)


def measure(
    name: str,
    prompts: tuple[Tensor, Tensor],
    config: ConstructionConfig,
    dtype: DtypeName,
    constants: Constants,
) -> float:
    """Relative error of one program against its textbook predictor, on float64 prompts."""
    measured, (xs, ys) = PROGRAMS[name], prompts
    model = measured.build(
        *(xs.shape[2], xs.shape[1]),
        **measured.arguments(config),
        constants=constants,
        dtype=DTYPES[dtype],
    )
    with torch.inference_mode(), one_thread():
        predictions = model(xs.to(DTYPES[dtype]), ys.to(DTYPES[dtype])).double()
    return relative_error(predictions, measured.reference(config)(xs, ys))


def trace_gradient_step(seed: int, dim: int = 3) -> pd.DataFrame:
    """The hidden matrix of one gradient step after every layer, entry by entry: the worked picture.

    One example and one query, started from a w other than 0 so that every line of the proof shows.

    Returns:
        Rows of layer (0: the embedding), operation, line (of the proof), row, token and value.
    """
    task = TaskConfig(dim=dim, num_examples=2)
    prompts = draw_prompts(task, 1, seed, stream="construction").to(torch.float64)
    start = np.linspace(0.5, -0.5, dim) if dim > 1 else [0.5]
    model = programs.gradient_step(dim, 2, step_size=0.1, penalty=0.5, initial_weights=start)
    with torch.inference_mode():
        states = model.hidden_states(prompts.xs, prompts.ys)[:, 0].numpy()  # (L+1, T, H)
    steps = [("embedding", "the prompt"), *((layer.name, layer.line) for layer in model.layers)]
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "operation": operation,
                "line": line,
                "row": label,
                "token": token,
                "value": value,
            }
            for layer, (operation, line) in enumerate(steps)
            for label, row in model.rows.labels()
            for token, value in zip(("x₁", "y₁", "x₂"), states[layer, :, row], strict=True)
        ]
    )


def _draw(
    config: ConstructionConfig, dim: int, num_examples: int, num_prompts: int, seed: int
) -> tuple[Tensor, Tensor]:
    task = TaskConfig(dim=dim, num_examples=num_examples, noise_std=config.noise_std)
    prompts = draw_prompts(task, num_prompts, seed, step=dim, stream="construction").to(
        torch.float64
    )
    return prompts.xs, prompts.ys
