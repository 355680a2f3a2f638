"""Draw the prompts that the other pipelines measure on, from seeds of their own."""

from torch import Tensor

from incontext_linear.comparison.config import ComparisonConfig
from incontext_linear.config import DataGenerationConfig, EvaluationConfig, TaskConfig
from incontext_linear.tasks import draw_mixture, draw_prompts, generator

Tensors = dict[str, Tensor]


def draw_evaluation_prompts(
    task: TaskConfig,
    evaluation: EvaluationConfig,
    data_generation: DataGenerationConfig,
    seed: int,
) -> Tensors:
    """Prompts for the behavioural comparison: xs (B, n, d), ys (B, n), ws (B, d)."""
    count = data_generation.num_evaluation_prompts
    return draw_prompts(evaluation.over(task), count, seed, stream="evaluation")._asdict()


def draw_evaluation_queries(
    task: TaskConfig, evaluation: EvaluationConfig, comparison: ComparisonConfig, seed: int
) -> Tensors:
    """Fresh queries (B', Q, d) from the inputs' distribution, on which implicit weights are
    fitted.
    """
    inputs = evaluation.over(task).inputs
    shape = (comparison.num_weight_prompts, comparison.num_queries, task.dim)
    return {"queries": draw_mixture(inputs, shape, generator(seed, "queries"))}


def draw_probing_prompts(
    task: TaskConfig,
    evaluation: EvaluationConfig,
    data_generation: DataGenerationConfig,
    seed: int,
) -> Tensors:
    """Prompts for the probes, as long as in training or longer: xs (B, n, d), ys (B, n), ws (B,
    d).
    """
    count = data_generation.num_probing_prompts
    return draw_prompts(evaluation.probed(task), count, seed, stream="probing")._asdict()
