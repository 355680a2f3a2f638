"""The `model_training` pipeline."""

from incontext_linear.pipelines.model_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
