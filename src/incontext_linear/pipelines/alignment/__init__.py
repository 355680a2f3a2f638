"""The `alignment` pipeline."""

from incontext_linear.pipelines.alignment.pipeline import create_pipeline

__all__ = ["create_pipeline"]
