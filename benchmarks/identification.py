"""A blind trial of the identification of algorithms: ``python -m benchmarks.identification``.

Two zoos of learners whose algorithm is known, with other numbers, noise and seeds:
``development``, on which thresholds were chosen, and ``held_out``, which is what is reported.
Prints each answer, the counts and the confusion matrix; writes them as CSV into the folder given by
``--output``.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from incontext_linear.comparison.identification import IdentificationConfig, identify
from incontext_linear.comparison.trial import answer_row, confusion_matrix, make_zoo, summarize
from incontext_linear.config import TaskConfig

SEEDS = {"development": 1, "held_out": 2}


def answer(position: int, seed: int, task: TaskConfig, settings: IdentificationConfig) -> dict:
    """The method's answer to one learner of a zoo; in a process of its own."""
    torch.set_num_threads(1)
    learner = make_zoo(task, seed)[position]
    start = time.perf_counter()
    found = identify(learner.predictor, task, settings, seed=100 + seed)
    row = answer_row(learner, found.verdict)
    row |= {"seconds": time.perf_counter() - start, "words": found.verdict.words()}
    doubt = "" if found.verdict.confident or not found.verdict.named else " in its domain alone"
    print(f"{row['learner']}: {row['named']}{doubt} ({row['survivors']})", flush=True)
    return row


def run_trial(zoo: str, workers: int, only: str, task: TaskConfig, settings: IdentificationConfig):
    """Answers to a whole zoo, or to those whose name contains a word."""
    names = [learner.name for learner in make_zoo(task, SEEDS[zoo])]
    chosen = [i for i, name in enumerate(names) if only in name]
    ask = partial(answer, seed=SEEDS[zoo], task=task, settings=settings)
    if workers == 1:
        return pd.DataFrame([ask(i) for i in chosen])
    with ProcessPoolExecutor(workers) as pool:
        return pd.DataFrame(pool.map(ask, chosen))


def main() -> None:
    """Run one zoo and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", choices=SEEDS, default="held_out")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="learners whose name contains this")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    settings = IdentificationConfig(
        num_prompts=options.prompts, num_calibration_prompts=options.prompts
    )
    task = TaskConfig(dim=3, num_examples=12)
    answers = run_trial(options.zoo, options.workers, options.only, task, settings)
    with pd.option_context(
        "display.width", 220, "display.max_colwidth", 70, "display.max_rows", 99
    ):
        print(answers.drop(columns=["words", "evidence"]).round(5).to_string())
        for row in answers[~answers["strict"]].itertuples():
            print(f"{row.learner}: {row.named}; against the truth: {row.evidence or '-'}")
        print(summarize(answers).to_string())
        print(confusion_matrix(answers).to_string())
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        answers.to_csv(options.output / f"trial_{options.zoo}.csv", index=False)
        confusion_matrix(answers).to_csv(options.output / f"confusion_{options.zoo}.csv")


if __name__ == "__main__":
    main()
