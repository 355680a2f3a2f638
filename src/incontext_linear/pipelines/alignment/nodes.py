"""Causal variables found and tested: the searches with their controls, reading, calibration."""

import itertools
import logging

import pandas as pd

from incontext_linear.config import resolve_device
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import as_transformer
from incontext_linear.probing.alignment_calibration import calibrate, calibration_summary
from incontext_linear.probing.alignment_config import AlignmentConfig
from incontext_linear.probing.alignment_learner import align_with_controls
from incontext_linear.probing.alignment_rule import FOUND
from incontext_linear.probing.paths import ablate_heads, classify_attention, trace_paths
from incontext_linear.probing.query_readings import read_queries
from incontext_linear.tables import MetricHistories, metric_histories, metric_history

logger = logging.getLogger(__name__)


def search_variables(
    learner: Learner, control: Learner, alignment: AlignmentConfig, seed: int, device: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The searches of the learner and its controls, and the verdict on every layer, positions and
    causal model.
    """
    shares, verdicts = align_with_controls(learner, control, alignment, seed, device)
    found = verdicts[verdicts["verdict"] == FOUND]
    for row in found.itertuples():
        logger.info(
            "Found: %s in layer %d at the %s, rank %d, share %.2f",
            row.model,
            row.layer,
            row.positions,
            row.rank,
            row.share,
        )
    if found.empty:
        logger.info("None of the named variables was found in a linear subspace")
    return shares, verdicts


def trace_reading(
    learner: Learner, alignment: AlignmentConfig, seed: int, device: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The edges that the query reads through, their scores, head ablation, attention patterns."""
    task, paths = learner.task, alignment.paths
    seen = alignment.examples_for(task.dim, task.num_examples)
    model = as_transformer(on_device(learner.model, resolve_device(device)))
    edges, scores = trace_paths(model, task, seen, paths, alignment.bootstrap, seed)
    heads = ablate_heads(model, task, seen, paths.num_prompts, seed)
    patterns = classify_attention(model, task, seen, paths.num_prompts, seed)
    return edges, scores, heads, patterns


def read_query(
    learner: Learner, alignment: AlignmentConfig, seed: int, device: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the query's token holds, layer by layer, and which number of steps is read best."""
    task = learner.task
    seen = alignment.examples_for(task.dim, task.num_examples)
    model = on_device(learner.model, resolve_device(device))
    return read_queries(model, task, seen, alignment.readings, alignment.bootstrap, seed)


def calibrate_search(alignment: AlignmentConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same search and rule on constructed networks: every verdict beside the truth, and how
    many of the held variables are found.
    """
    networks = itertools.product(alignment.calibration, alignment.calibration_seeds)
    tables = [calibrate(name, alignment, seed) for name, seed in networks]
    if not tables:  # a sweep's variants need none of their own
        nothing = pd.DataFrame(columns=["network", "seed", "verdict", "truth", "rank", "rows_rank"])
        return nothing, calibration_summary(nothing)
    table = pd.concat(tables, ignore_index=True)
    summary = calibration_summary(table)
    for row in summary.itertuples():
        logger.info(
            "Calibration, %s, seed %d: %d of %d held variables found, and %d of %d absent ones",
            row.network,
            row.seed,
            row.held_found,
            row.held,
            row.absent_found,
            row.absent,
        )
    return table, summary


def report_alignment_metrics(
    verdicts: pd.DataFrame, scores: pd.DataFrame, summary: pd.DataFrame
) -> MetricHistories:
    """Shares with the layer as step, the paths' faithfulness, and the calibration's counts."""
    metrics = metric_histories(verdicts, "alignment", ["model", "positions"], "layer", "share")
    metrics = {name: points for name, points in metrics.items() if points}
    for edges, share in zip(scores["edges"], scores["share"].tolist(), strict=True):
        metrics[f"paths.{edges}"] = metric_history([0], [share])
    chosen = scores.loc[scores["edges"] == "chosen", "number"]
    metrics["paths.number"] = metric_history([0], chosen.tolist())
    for name in ("held", "held_found", "absent", "absent_found"):
        metrics[f"alignment.calibration.{name}"] = metric_history([0], [float(summary[name].sum())])
    return metrics
