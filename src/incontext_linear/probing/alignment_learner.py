"""A learner beside its controls: the searches, and the verdicts."""

import pandas as pd

from incontext_linear.config import resolve_device
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.registry import build_untrained
from incontext_linear.learner.saved import Learner
from incontext_linear.probing.alignment import align
from incontext_linear.probing.alignment_config import AlignmentConfig
from incontext_linear.probing.alignment_rule import LEARNER, candidates, decide
from incontext_linear.tasks import generator

SHUFFLED = "shuffled"


def align_with_controls(
    learner: Learner,
    control: Learner,
    config: AlignmentConfig,
    seed: int,
    device: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Search in the learner everywhere, and in controls where a variable would else be found.

    Controls are the learner with shuffled counterfactuals, an untrained learner, and one that was
    trained on the single w = 1.

    Args:
        learner: the learner.
        control: trained on w = 1.
        config: causal models, places, ranks, rule.
        seed: of prompts, searches and the untrained learner.
        device: where all of it runs.

    Returns:
        `align`'s table with the column ``source``, and `decide`'s.
    """
    where, task = resolve_device(device), learner.task
    found = align(on_device(learner.model, where), task, config, seed, device=where)
    tables = [found.assign(source=LEARNER)]
    cells = candidates(found, config.rule)
    if cells:
        rng = generator(seed, "untrained learner")
        untrained = build_untrained(task, learner.config, rng)
        asked = {
            SHUFFLED: learner.model,
            "untrained_learner": untrained,
            "control_learner": control.model,
        }
        for source, model in asked.items():
            table = align(
                on_device(model, where),
                task,
                config,
                seed,
                cells,
                shuffle=source == SHUFFLED,
                device=where,
            )
            tables.append(table.assign(source=source))
    shares = pd.concat(tables, ignore_index=True)
    return shares, decide(shares, config.rule)
