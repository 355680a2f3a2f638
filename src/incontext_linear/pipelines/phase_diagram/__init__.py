"""The `phase_diagram` pipeline."""

from incontext_linear.pipelines.phase_diagram.pipeline import create_pipeline

__all__ = ["create_pipeline"]
