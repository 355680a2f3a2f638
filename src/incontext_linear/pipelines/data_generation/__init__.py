"""The `data_generation` pipeline."""

from incontext_linear.pipelines.data_generation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
