"""What the query's token holds as it reads: answers of gradient descent and of ridge regression.

The query's token knows a single x', so w cannot be asked of it alone. What can be read from it,
layer by layer, is x'ᵀw_m for m gradient steps and x'ᵀ(XᵀX + λI)⁻¹Xᵀy along λ. The read-outs are
linear, and fitted by least squares on as many prompts as are asked for, which are drawn as they are
needed: only sums of products are kept.

Shape letters: L layers, H width, V values that are read, B prompts.
"""

from collections.abc import Iterator
from typing import cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.learner.base import LayeredLearner, residual_streams
from incontext_linear.learner.devices import device_of
from incontext_linear.probing.alignment_config import ReadingsConfig
from incontext_linear.probing.causal_models import Algorithm, Examples
from incontext_linear.probing.exchange import prompt_of
from incontext_linear.statistics import ratio_interval
from incontext_linear.tasks import draw_prompts

FAMILIES = ("gradient_descent", "ridge")
PROMPTS_AT_ONCE = 1024
_JITTER = 1e-7


def answers_along(
    examples: Examples, config: ReadingsConfig
) -> dict[tuple[str, float], Float[Tensor, " batch"]]:
    """The two families' answers to the query, by (family, number): steps m, or penalty λ."""
    algorithm = Algorithm(None, config.step_size, 1)
    gram, moment = examples.gram.double(), examples.moment.double()
    query = examples.query.double()
    answers, done = {}, 0
    weights = torch.zeros_like(moment)
    for steps in config.gradient_steps:
        weights = algorithm.descend(gram, moment, weights, steps - done)
        done = steps
        answers["gradient_descent", float(steps)] = (query * weights).sum(-1)
    for penalty in config.penalties:
        weights = Algorithm(penalty, config.step_size, 1).solve(gram, moment)
        answers["ridge", penalty] = (query * weights).sum(-1)
    return answers


def _batches(
    model: LayeredLearner,
    task: TaskConfig,
    seen: int,
    config: ReadingsConfig,
    number: int,
    seed: int,
    stream: str,
) -> Iterator[tuple[Float[Tensor, "layer batch feature"], Float[Tensor, "batch value"]]]:
    """The query's states (with a constant 1 beside them) and the values, batch after batch."""
    device = device_of(model) if isinstance(model, torch.nn.Module) else "cpu"
    for step, start in enumerate(range(0, number, PROMPTS_AT_ONCE)):
        size = min(PROMPTS_AT_ONCE, number - start)
        prompts = draw_prompts(task, size, seed, step, stream, device)
        examples = Examples(prompts.xs[:, :seen], prompts.ys[:, :seen], prompts.xs[:, seen])
        streams = residual_streams(model, *prompt_of(examples))
        states = torch.stack([hidden[:, -1] for _, hidden in streams]).double()
        values = torch.stack(list(answers_along(examples, config).values()), dim=1)
        yield torch.nn.functional.pad(states, (0, 1), value=1.0), values


@torch.no_grad()
def read_queries(
    model: LayeredLearner | torch.nn.Module,
    task: TaskConfig,
    examples_seen: int,
    config: ReadingsConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit linear read-outs of the query's token in every layer, and score them on other prompts.

    Args:
        model: the learner.
        task: what prompts are drawn from.
        examples_seen: k.
        config: numbers of prompts, steps and penalties.
        bootstrap: level and number of resamples.
        seed: of the prompts.

    Returns:
        ``layer``, ``family``, ``number`` (m or λ), ``error`` (a share of the value's variance),
        ``low``, ``high``. And, per layer and family, the number that is read best: chosen on
        validation prompts, with its error on the test prompts.
    """
    arguments = cast(LayeredLearner, model), task, examples_seen, config
    sums, products = torch.tensor(0.0), torch.tensor(0.0)
    for states, values in _batches(*arguments, config.num_prompts, seed, "query readings"):
        sums, products = sums + states.mT @ states, products + states.mT @ values
    readouts = _fit(sums, products)
    choice, test = (
        _errors(readouts, _batches(*arguments, config.num_test_prompts, seed, f"readings {part}"))
        for part in ("validation", "test")
    )
    keys = _keys(config, len(readouts))
    left, whole = (part.reshape(len(part), -1).cpu().numpy() for part in test)
    table = keys.join(
        ratio_interval(left, whole, bootstrap, seed).rename(columns={"mean": "error"})
    )
    validated = keys.assign(error=(choice[0].mean(0) / choice[1].mean(0)).flatten().cpu().numpy())
    best = validated.groupby(["layer", "family"], sort=False)["error"].idxmin()
    return table, table.loc[best].reset_index(drop=True)


def _fit(
    sums: Float[Tensor, "layer feature feature"], products: Float[Tensor, "layer feature value"]
) -> Float[Tensor, "layer feature value"]:
    """Least squares with an intercept, the last feature, from sums of products."""
    number = sums[:, -1:, -1:]
    mean, mean_value = sums[:, :-1, -1:] / number, products[:, -1:] / number
    covariance = sums[:, :-1, :-1] / number - mean @ mean.mT
    # States of the first layers do not span the whole width.
    jitter = _JITTER * covariance.diagonal(dim1=1, dim2=2).mean(1)
    covariance = covariance + jitter[:, None, None] * torch.eye(covariance.shape[-1]).to(covariance)
    slopes = torch.linalg.solve(covariance, products[:, :-1] / number - mean @ mean_value)
    return torch.cat((slopes, mean_value - mean.mT @ slopes), dim=1)


def _errors(
    readouts: Float[Tensor, "layer feature value"], batches: Iterator[tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "batch layer value"], Float[Tensor, "batch layer value"]]:
    """Squared errors and squared deviations from the mean, for every prompt."""
    errors, all_values = [], []
    for states, values in batches:
        errors.append((states @ readouts - values).square().transpose(0, 1))
        all_values.append(values)
    values = torch.cat(all_values)
    deviations = (values - values.mean(0)).square()
    return torch.cat(errors), deviations[:, None].expand(-1, len(readouts), -1)


def _keys(config: ReadingsConfig, num_layers: int) -> pd.DataFrame:
    numbers = [("gradient_descent", float(m)) for m in config.gradient_steps]
    numbers += [("ridge", penalty) for penalty in config.penalties]
    rows = [(layer, *number) for layer in range(num_layers) for number in numbers]
    return pd.DataFrame(rows, columns=["layer", "family", "number"])
