"""The `identification` pipeline."""

from incontext_linear.pipelines.identification.pipeline import create_pipeline

__all__ = ["create_pipeline"]
