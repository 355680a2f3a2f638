"""Wiring: parameters in, prompts out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.pipelines import box
from incontext_linear.pipelines.data_generation.nodes import (
    draw_evaluation_prompts,
    draw_evaluation_queries,
    draw_probing_prompts,
)

_DRAW = ["params:task", "params:evaluation", "params:data_generation", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Draw evaluation prompts, queries and probing prompts."""
    nodes = [
        node(draw_evaluation_prompts, _DRAW, "evaluation_prompts", name="draw_evaluation_prompts"),
        node(
            draw_evaluation_queries,
            ["params:task", "params:evaluation", "params:comparison", "params:seed"],
            "evaluation_queries",
            name="draw_evaluation_queries",
        ),
        node(draw_probing_prompts, _DRAW, "probing_prompts", name="draw_probing_prompts"),
    ]
    return box("data_generation", nodes)
