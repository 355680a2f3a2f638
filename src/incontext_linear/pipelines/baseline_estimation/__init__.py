"""The `baseline_estimation` pipeline."""

from incontext_linear.pipelines.baseline_estimation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
