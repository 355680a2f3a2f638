"""The `behavioral_comparison` pipeline."""

from incontext_linear.pipelines.behavioral_comparison.pipeline import create_pipeline

__all__ = ["create_pipeline"]
