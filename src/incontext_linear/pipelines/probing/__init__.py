"""The `probing` pipeline."""

from incontext_linear.pipelines.probing.pipeline import create_pipeline

__all__ = ["create_pipeline"]
