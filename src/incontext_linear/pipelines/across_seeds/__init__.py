"""The `across_seeds` pipeline."""

from incontext_linear.pipelines.across_seeds.pipeline import create_pipeline

__all__ = ["create_pipeline"]
