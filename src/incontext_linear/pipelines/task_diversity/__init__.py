"""The `task_diversity` pipeline."""

from incontext_linear.pipelines.task_diversity.pipeline import create_pipeline

__all__ = ["create_pipeline"]
