"""The one look of an algorithm: told apart by everyone, the same under all of its names."""

import itertools

import numpy as np
import pytest
import yaml
from matplotlib.colors import to_rgb
from support.project import ROOT

from incontext_linear.comparison.families import DEFAULT_FAMILIES
from incontext_linear.figures.style import styles
from incontext_linear.tables import LEARNER

# Of linear RGB: Machado, Oliveira and Fernandes (2009), severity 1.
SIGHT = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def seen_as(color: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour: there a distance of about 2 can just be noticed."""
    encoded = np.array(to_rgb(color))
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(sight @ linear, 0, 1) / (0.95047, 1.0, 1.08883)
    fx, fy, fz = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def closest(names: list[str], sight: np.ndarray) -> tuple[float, str, str]:
    """The two curves with the same dash whose colours are nearest, and how near."""
    looks = styles(names)
    places = {name: seen_as(looks[name]["color"], sight) for name in names}
    return min(
        (float(np.linalg.norm(places[one] - places[other])), one, other)
        for one, other in itertools.combinations(names, 2)
        if looks[one]["linestyle"] == looks[other]["linestyle"]
    )


@pytest.mark.parametrize("sight", SIGHT)
def test_everyone_can_tell_the_algorithms_of_the_parameters_apart(sight: str):
    path = ROOT / "conf/base/parameters_baseline_estimation.yml"
    baselines = yaml.safe_load(path.read_text(encoding="utf-8"))["baselines"]
    assert closest([LEARNER, *baselines], SIGHT[sight])[0] > 12


def test_red_and_green_of_one_lightness_would_be_found_too_close():
    red, green = (seen_as(color, SIGHT["deuteranopia"]) for color in ("#b05a3c", "#857840"))
    assert np.linalg.norm(red - green) < 12
    red, green = (seen_as(color, SIGHT["normal"]) for color in ("#b05a3c", "#857840"))
    assert np.linalg.norm(red - green) > 30


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ols", "least_squares"),
        ("gradient_descent", "gradient_flow"),
        ("gradient_descent", "gd"),
        ("newton", "iterative_newton"),
        ("one_pass_sgd", "sgd"),
        ("nearest_neighbors", "knn"),
    ],
)
def test_one_algorithm_has_one_look_under_all_its_names(one: str, other: str):
    looks = styles([one, other])
    assert looks[one] == looks[other]


@pytest.mark.parametrize("family", ["ridge", "gradient_descent"])
def test_numbers_of_each_ks_own_keep_the_familys_colour_with_another_dash(family: str):
    one, by_k = styles([family, f"{family}_by_k"]).values()
    assert by_k["color"] == one["color"]
    assert by_k["linestyle"] != one["linestyle"]


def test_every_candidate_of_identification_has_a_look_of_its_own():
    looks = styles(DEFAULT_FAMILIES)
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == len(looks)
