"""Made-up sweeps with planted answers, for the statistics and the figures of phase diagrams."""

import numpy as np
import pandas as pd

from incontext_linear.phase_diagram.resampling import Differences, resample_sweep


def grid(values, seeds=(0, 1), axis="model.num_layers", dim=2):
    """Variants as `list_variants` gives them."""
    rows = [
        {
            "folder": f"{value}/{seed}",
            "axis": axis,
            "axis_value": float(value),
            "coordinate": float(value),
        }
        | {"dim": dim, "seed": seed}
        for value in values
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def measure(values, make, seeds=(0, 1), names=("a", "b", "c"), **settings):
    """Resample a made-up sweep; make(value, seed) → differences (prompts, examples, predictors)."""

    def read(folder):
        value, seed = folder.split("/")
        return Differences(tuple(names), make(float(value), int(seed)))

    known = {"examples_seen": None, "points": (), "num_resamples": 200, "seed": 0} | settings
    axis = known.pop("axis", "model.num_layers")
    return resample_sweep(grid(values, seeds, axis), read, **known)


def rough(levels, prompts=30, examples=4, spread=0.5):
    """make(value, seed): differences whose SPD is about levels(value) (one number a predictor)."""

    def make(value, seed):
        rng = np.random.default_rng([int(1000 * value), seed])
        noise = 1 + spread * rng.normal(size=(prompts, examples, len(levels(value))))
        return noise * np.sqrt(levels(value))

    return make


def crossing(place, logarithmic=True):
    """SPD of a rises and of b falls along the axis; equal at `place`."""

    def levels(value):
        gap = np.log(value / place) if logarithmic else value - place
        return np.array([np.exp(gap), np.exp(-gap), 50.0])

    return levels
