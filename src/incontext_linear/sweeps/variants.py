"""A sweep's variants: the crossing of its axes, their names, folders, parameters and
fingerprints.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from incontext_linear.files import fingerprint
from incontext_linear.parameters import (
    AxisValue,
    ParameterError,
    Parameters,
    check_parameters,
    show,
)
from incontext_linear.sweeps.config import SweepConfig, SweepError
from incontext_linear.sweeps.state import VariantFolder
from incontext_linear.training import can_be_stacked, stack_key
from incontext_linear.training.config import NO_EFFECT

PIPELINES = ("data_generation", "model_training")
"""What every variant runs, before the pipelines that the sweep names."""

NODES = (
    "draw_evaluation_prompts",
    "draw_evaluation_queries",
    "train_learner",
    "estimate_baseline_predictions",
    "estimate_learner_weights",
    "measure_spd",
)
"""Those of their nodes that need memory, as `sizes.NEEDS` names them."""

DECISIVE = (
    "task",
    "model",
    "training",
    "data_generation",
    "evaluation",
    "baselines",
    "comparison",
)
"""The branches of the parameters that a variant which compares by predictions reads, beside the
seed and the device.
"""
STACK = 16
"""Learners that are trained together at most: beyond that a GPU is busy, and a failure loses more.
"""


@dataclass(frozen=True)
class Variant:
    """One combination of the axes' values, with one seed."""

    sweep: str
    axes: dict[str, AxisValue]
    seed: int
    overrides: dict[str, Any]
    """Nested parameters that make it this variant, over the environment's."""
    parameters: Parameters
    """The whole tree, checked."""
    num_threads: int = 1
    """Of its arithmetic on the CPU."""
    follow: dict[str, AxisValue] = field(default_factory=dict)
    """Parameters that go along with its axes."""
    pipelines: tuple[str, ...] = ("behavioral_comparison",)
    """What is measured."""
    branches: tuple[str, ...] = DECISIVE
    """Of the parameters: what its pipelines read."""
    figures: bool = False

    @property
    def name(self) -> str:
        """``model.num_layers=4,seed=0``"""
        return ",".join(f"{axis}={show(value)}" for axis, value in self._settings())

    @property
    def folder(self) -> Path:
        """Its place below the sweep's folder: ``model.num_layers=4/seed=0``."""
        return Path(
            *(f"{quote(axis)}={quote(show(value), safe='+,')}" for axis, value in self._settings())
        )

    @property
    def fingerprint(self) -> str:
        """Changes with every parameter that its results depend on, and with no other."""
        tree = self.parameters.model_dump(mode="json", include=set(self.branches))
        tree["training"] = {
            key: value for key, value in tree["training"].items() if key not in NO_EFFECT
        }
        # One thread is what sweeps have by default, and is left out as the earliest ones left it.
        return fingerprint(tree, self.seed, *([self.num_threads] if self.num_threads > 1 else []))

    @property
    def record(self) -> dict[str, Any]:
        """What its folder says of it whatever becomes of it."""
        return {
            "sweep": self.sweep,
            "variant": self.name,
            "axes": self.axes,
            "follow": self.follow,
            "pipelines": list(self.pipelines),
            "seed": self.seed,
            "num_threads": self.num_threads,
            "fingerprint": self.fingerprint,
            "parameters": self.parameters.model_dump(mode="json", exclude={"variant"}),
        }

    def _settings(self) -> list[tuple[str, AxisValue]]:
        return [*self.axes.items(), ("seed", self.seed)]


@dataclass(frozen=True)
class VariantTask:
    """One variant to run: all that a worker process needs to know.

    Args:
        variant: what to run.
        folder: where; the project lies there under the same path for every worker.
        env: Kedro's environment.
        parent_run_id: the sweep's run in MLflow.
    """

    variant: Variant
    folder: VariantFolder
    env: str | None
    parent_run_id: str | None

    @property
    def runtime_params(self) -> dict[str, Any]:
        """What is laid over the environment's parameters, with the `VariantConfig`."""
        variant = self.variant
        identity = {
            "sweep": variant.sweep,
            "name": variant.name,
            "folder": self.folder.relative.as_posix(),
            "axes": variant.axes,
            "seed": variant.seed,
            "parent_run_id": self.parent_run_id,
        }
        return variant.overrides | {"variant": identity}


@dataclass(frozen=True)
class GroupTask:
    """Variants that one worker takes at once: one to run, or several of one shape to train in one
    step, which then run one by one.
    """

    tasks: tuple[VariantTask, ...]


def group(variants: Sequence[Variant], stacked: bool) -> list[list[Variant]]:
    """The variants that can be trained together, `STACK` at most; each alone if not stacked, or if
    its architecture cannot be.
    """
    if not stacked:
        return [[variant] for variant in variants]
    alike: dict[Any, list[Variant]] = {}
    for variant in variants:
        parameters = variant.parameters
        key = (*stack_key(parameters.recipe), parameters.device, variant.num_threads)
        if not can_be_stacked(parameters.recipe.model):
            key = (*key, variant.seed, *map(str, variant.axes.items()))
        alike.setdefault(key, []).append(variant)
    return [
        together[start : start + STACK]
        for together in alike.values()
        for start in range(0, len(together), STACK)
    ]


def cross(
    name: str,
    sweep: SweepConfig,
    read_parameters: Callable[[dict[str, Any]], dict[str, Any]],
    branches: tuple[str, ...] = DECISIVE,
) -> list[Variant]:
    """All variants of a sweep, checked, the last axis and then the seed varying fastest.

    Args:
        name: the sweep's name.
        sweep: its axes, seeds and parameters.
        read_parameters: gives the environment's parameter tree with nested overrides laid over it.
        branches: of the parameters, which the sweep's pipelines read.

    Raises:
        SweepError: if an axis names no parameter that matters, or a variant's parameters are not
            valid; every such variant is named, with the parameter.
    """
    tree = read_parameters(sweep.parameters)
    paths = {axis: _locate(tree, axis, f"{name}.axes", branches) for axis in sweep.axes}
    for axis, followers in sweep.follow.items():
        where = f"{name}.follow.{axis}"
        paths |= {other: _locate(tree, other, where, branches) for other in followers}
    variants, problems = [], []
    _check_settings(name, sweep, branches)
    for values in itertools.product(*sweep.all_axes.values()):
        axes = dict(zip(sweep.all_axes, values, strict=True))
        overrides, follow = sweep.parameters, _following(sweep, axes)
        for axis, value in (axes | follow).items():
            if axis in sweep.settings:
                overrides = laid_over(overrides, sweep.settings[axis][str(value)])
            else:
                overrides = _with(overrides, paths[axis], value)
        try:
            parameters = check_parameters(read_parameters(overrides))
        except ParameterError as error:
            where = ",".join(f"{axis}={show(value)}" for axis, value in axes.items())
            problems += [f"{name}, variant {where}: {line}" for line in str(error).splitlines()]
            continue
        for seed in sweep.seeds:
            seeded = parameters.model_copy(update={"seed": seed})
            own = overrides | {"seed": seed}
            settings = (sweep.num_threads, follow, sweep.pipelines, branches, sweep.figures)
            variants.append(Variant(name, axes, seed, own, seeded, *settings))
    if problems:
        raise SweepError("\n".join(problems))
    return variants


def _following(sweep: SweepConfig, axes: dict[str, AxisValue]) -> dict[str, AxisValue]:
    """What goes along with one combination of the axes' values."""
    return {
        name: values[sweep.axes[axis].index(axes[axis])]
        for axis, followers in sweep.follow.items()
        for name, values in followers.items()
    }


def _locate(
    tree: dict[str, Any], axis: str, where: str, branches: Sequence[str]
) -> tuple[str, ...]:
    """The keys that a dotted name stands for; a key may hold dots
    (``baselines.ridge_0.1.penalty``).
    """
    path, rest = [], axis
    while rest:
        fits = [key for key in tree if rest == key or rest.startswith(f"{key}.")] if tree else []
        if not fits:
            prefix = "".join(f"{key}." for key in path)
            allowed = ", ".join(f"{prefix}{key}" for key in (tree if path else branches))
            raise SweepError(
                f"{where}.{axis}: no such parameter; allowed here: {allowed or 'nothing below it'}"
            )
        key = max(fits, key=len)
        path, rest = [*path, key], rest[len(key) + 1 :]
        tree = tree[key] if isinstance(tree[key], dict) else {}
        if path[0] not in branches:
            raise SweepError(
                f"{where}.{axis}: no pipeline of a sweep depends on it; allowed: parameters below "
                + ", ".join(branches)
            )
    return tuple(path)


def _check_settings(name: str, sweep: SweepConfig, branches: Sequence[str]) -> None:
    """Refuse settings of parameters that no pipeline of the sweep reads."""
    for axis, named in sweep.settings.items():
        for value, tree in named.items():
            for branch in tree:
                if branch not in branches:
                    raise SweepError(
                        f"{name}.settings.{axis}.{value}.{branch}: no pipeline of a sweep depends "
                        f"on it; allowed: {', '.join(branches)}"
                    )


def laid_over(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested tree with another one laid over it."""
    for key, value in other.items():
        below = tree.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = laid_over(below, value)
        tree = tree | {key: value}
    return tree


def _with(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a nested tree with one entry set."""
    key, *rest = path
    if not rest:
        return tree | {key: value}
    below = tree.get(key)
    return tree | {key: _with(below if isinstance(below, dict) else {}, tuple(rest), value)}
