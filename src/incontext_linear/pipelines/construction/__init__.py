"""The `construction` pipeline."""

from incontext_linear.pipelines.construction.pipeline import create_pipeline

__all__ = ["create_pipeline"]
