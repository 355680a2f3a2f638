"""Which algorithm do saved learners follow? ``python -m tools.identify LEARNER.safetensors …``

Runs the whole method of `comparison.identification`, and the spectral filters of every layer, on
each learner, as the pipeline `identification` does on one. Writes a folder a learner with its
tables and its verdict in words and as JSON, and ``over_learners.csv``: for how many of them each
candidate survives. With ``--summarize`` nothing is measured: the JSON files of the folders given
are counted.
"""

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path

import pandas as pd
import torch

from incontext_linear.comparison.filters import FilterConfig
from incontext_linear.comparison.filters.layers import layer_filters
from incontext_linear.comparison.identification import IdentificationConfig, identify
from incontext_linear.config import resolve_device
from incontext_linear.files import write_json, write_text
from incontext_linear.learner import Learner, load_learner

FILTER_TABLES = ("bins", "curves", "scores", "shares")


def measure(learner: Learner, settings: IdentificationConfig, seed: int, device: str) -> dict:
    """Everything that is measured of one learner: tables by name, and a summary."""
    model, start = learner.model.to(device), time.perf_counter()
    found = identify(model, learner.task, settings, seed, device)
    tables = found.tables()
    filters = layer_filters(model, learner.task, settings.filters, seed)
    tables |= {f"filter_{name}": getattr(filters, name) for name in FILTER_TABLES}
    verdict = found.verdict
    summary = {
        "named": verdict.named,
        "survivors": list(verdict.survivors),
        "near_home": list(verdict.near_home),
        "nearest_home": verdict.nearest_home,
        "members": dict(verdict.members),
        "ruled_out": {n: dataclasses.asdict(e) for n, e in verdict.ruled_out.items()},
        "scalars": verdict.scalars(),
        "words": verdict.words(),
        "task": learner.task.model_dump(mode="json"),
        "model": learner.model.config.model_dump(mode="json"),
        "seed": learner.record.get("seed"),
        "seconds": time.perf_counter() - start,
    }
    return tables | {"summary": summary}


def summarize(folders: list[Path]) -> pd.DataFrame:
    """For how many learners each candidate survives, is the one named, and is near at home."""
    found = [json.loads((folder / "verdict.json").read_text()) for folder in folders]
    names = list(dict.fromkeys(name for one in found for name in one["members"]))
    rows = [
        {
            "candidate": name,
            "survives": sum(name in one["survivors"] for one in found),
            "named": sum(name == one["named"] for one in found),
            "near_at_home": sum(name in one["near_home"] for one in found),
            "nearest_at_home": sum(name == one["nearest_home"] for one in found),
            "learners": len(found),
        }
        for name in names
    ]
    return pd.DataFrame(rows).sort_values(["survives", "near_at_home"], ascending=False)


def main() -> None:
    """Read the command line, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("learners", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("identified"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--prompts", type=int, default=256, help="of each condition")
    parser.add_argument("--filter-prompts", type=int, default=600)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--summarize", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = IdentificationConfig(
        num_prompts=arguments.prompts,
        num_calibration_prompts=arguments.prompts,
        filters=FilterConfig(num_prompts=arguments.filter_prompts),
    )
    device, folders = str(resolve_device(arguments.device)), []
    for path in arguments.learners:
        folder = path if arguments.summarize else arguments.output / path.stem
        folders.append(folder)
        if arguments.summarize:
            continue
        measured = measure(load_learner(path), settings, arguments.seed, device)
        summary = measured.pop("summary")
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in measured.items():
            table.to_parquet(folder / f"{name}.parquet")
        write_json(folder / "verdict.json", summary)
        write_text(folder / "verdict.txt", summary["words"] + "\n")
        logging.info("%s (%.0f s): %s\n", path.stem, summary["seconds"], summary["words"])
    table = summarize(folders)
    if not arguments.summarize:
        table.to_csv(arguments.output / "over_learners.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
