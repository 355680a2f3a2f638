"""Several trainings of one recipe with their snapshots, and what the learners predict at each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import EvaluationConfig, TaskConfig, resolve_device
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.tasks import Prompts, Xs, Ys, draw_prompts
from incontext_linear.training import (
    CheckpointStore,
    Progress,
    Recipe,
    SnapshotStore,
    log_spaced_steps,
    train,
)

HOME, PRIOR = "home", "prior"
"""Prompts as in training, and, where w comes from a pool, of the prior that the pool is drawn
from.
"""


@dataclass(frozen=True)
class Trajectories:
    """Trainings that differ in their seed alone, each with its snapshots.

    Attributes:
        store: where the snapshots lie, and their steps.
        runs: seed → the name of its training.
    """

    store: SnapshotStore
    runs: dict[int, str]

    @property
    def seeds(self) -> list[int]:
        """Of the trainings, in their order."""
        return list(self.runs)

    @property
    def steps(self) -> list[int]:
        """At which every learner was kept."""
        return list(self.store.steps)

    def learners(self, seed: int) -> Iterator[tuple[int, Learner]]:
        """Step and learner, one after the other: only one is in memory."""
        return self.store.load(self.runs[seed])


def train_trajectories(
    recipe: Recipe,
    seeds: Sequence[int],
    num_snapshots: int,
    snapshots: SnapshotStore,
    device: str,
    checkpoints: CheckpointStore | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Trajectories:
    """Train one learner a seed and keep snapshots; a training whose snapshots are all there is not
    repeated.

    Args:
        recipe: what is trained; its own seed is not used.
        seeds: of the trainings.
        num_snapshots: as for `log_spaced_steps`.
        snapshots: where they are kept; its own steps are not used.
        device: ``auto``, ``cpu`` or ``cuda``.
        checkpoints: where trainings are saved on the way and resumed from.
        on_progress: as for `train`.

    Raises:
        TrainingDivergedError: as `train`.
    """
    steps = log_spaced_steps(recipe.training.num_steps, num_snapshots)
    store = replace(snapshots, steps=steps)
    runs = {}
    for seed in seeds:
        own = replace(recipe, seed=seed)
        runs[seed] = own.run_name(resolve_device(device))
        if not store.has_all(runs[seed], store.steps):
            train(own, device, checkpoints, on_progress, store)
            if checkpoints:
                checkpoints.discard(own.fingerprint)
    return Trajectories(store, runs)


def draw_prompt_sets(
    task: TaskConfig, evaluation: EvaluationConfig, num_prompts: int, seed: int
) -> dict[str, Prompts]:
    """The same prompts for all seeds and steps: `HOME`, and `PRIOR` for a task with a pool."""
    own = evaluation.over(task)
    tasks = {HOME: own}
    if own.pool_size is not None:
        tasks[PRIOR] = own.model_copy(update={"pool_size": None})
    return {
        name: draw_prompts(chosen, num_prompts, seed, stream=f"dynamics {name}")
        for name, chosen in tasks.items()
    }


@torch.no_grad()
def predict_along_training(
    trajectories: Trajectories, xs: Xs, ys: Ys, device: str, prompts_at_once: int = 256
) -> Float[Tensor, "seed step batch example"]:
    """Every learner's predictions on the same prompts, on the CPU."""
    where = resolve_device(device)
    batches = list(
        zip(xs.to(where).split(prompts_at_once), ys.to(where).split(prompts_at_once), strict=True)
    )

    def predict(learner: Learner) -> Tensor:
        model = on_device(learner.model, where)
        return torch.cat([model(*batch).cpu() for batch in batches])

    return torch.stack(
        [
            torch.stack([predict(learner) for _, learner in trajectories.learners(seed)])
            for seed in trajectories.seeds
        ]
    )
