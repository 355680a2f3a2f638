"""The `training_dynamics` pipeline."""

from incontext_linear.pipelines.training_dynamics.pipeline import create_pipeline

__all__ = ["create_pipeline"]
