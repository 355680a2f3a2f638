"""Wiring: parameters in, prompts out."""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines.data_generation.nodes import (
    draw_evaluation_prompts,
    draw_evaluation_queries,
    draw_probing_prompts,
)


def create_pipeline(**kwargs) -> Pipeline:
    """Draw evaluation prompts, queries and probing prompts."""
    return pipeline(
        [
            node(
                draw_evaluation_prompts,
                ["params:task", "params:data_generation", "params:seed"],
                "evaluation_prompts",
                name="draw_evaluation_prompts",
                tags=["baseline_estimation", "behavioral_comparison"],  # whose parts they are too
            ),
            node(
                draw_evaluation_queries,
                ["params:task", "params:comparison", "params:seed"],
                "evaluation_queries",
                name="draw_evaluation_queries",
                tags=["baseline_estimation", "behavioral_comparison"],  # whose parts they are too
            ),
            node(
                draw_probing_prompts,
                ["params:task", "params:data_generation", "params:seed"],
                "probing_prompts",
                name="draw_probing_prompts",
                # Part of the pipeline probing too, whose parts are selected by these tags.
                tags=["probing", "probes", "controls", "causality", "calibration", "layerwise"],
            ),
        ],
        tags="data_generation",
    )
