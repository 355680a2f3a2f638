"""What the learner's hidden states hold, layer by layer (paper, section 5)."""

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from incontext_linear.checkpoints import Learner, resolve_device
from incontext_linear.config import ProbingConfig
from incontext_linear.divergence import bootstrap_mean
from incontext_linear.figures import plot_attention, plot_probe_attention, plot_probe_scores
from incontext_linear.probes import TARGETS, ProbeScores, fit_probes


def train_probes(
    learner: Learner,
    prompts: dict[str, Tensor],
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit every probe; returns the scores by layer, target and kind, and the probes' attention."""
    where = resolve_device(device)
    xs, ys = (prompts[name].to(where) for name in ("xs", "ys"))
    seen, layers = _choose(probing, xs.shape[1], learner.model.config.num_layers)
    model = learner.model.to(where)
    with torch.no_grad():
        batches = zip(xs[:, : seen + 1].split(256), ys[:, : seen + 1].split(256), strict=True)
        hidden = torch.cat([model.hidden_states(*batch)[layers] for batch in batches], dim=1)
    targets = torch.stack([TARGETS[name](xs[:, :seen], ys[:, :seen]) for name in probing.targets])
    scores, attention = [], []
    for kind in probing.kinds:
        fitted = fit_probes(hidden, targets, kind, probing, seed)
        scores.append(_score_table(fitted, layers, kind, probing, seed))
        attention.append(_attention_table(fitted, layers, kind, probing))
    return pd.concat(scores, ignore_index=True), pd.concat(attention, ignore_index=True)


def _choose(probing: ProbingConfig, num_examples: int, num_layers: int) -> tuple[int, list[int]]:
    """Examples seen and layers, checked against the saved prompts and learner, whatever the parameters say."""
    seen = num_examples - 1 if probing.num_examples is None else probing.num_examples
    if seen >= num_examples:
        raise ValueError(
            f"probing.num_examples={seen}, but the saved prompts have {num_examples} examples; "
            f"allowed: 1 to {num_examples - 1}, or draw new prompts with the pipeline data_generation"
        )
    layers = list(range(num_layers + 1) if probing.layers is None else probing.layers)
    if max(layers) > num_layers:
        raise ValueError(
            f"probing.layers={layers}, but the saved learner has {num_layers} layers; allowed: 0 to {num_layers}, "
            "or train another learner with the pipeline model_training"
        )
    return seen, layers


def _score_table(
    fitted: ProbeScores, layers: list[int], kind: str, probing: ProbingConfig, seed: int
) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([layers, probing.targets], names=["layer", "target"])
    errors = fitted.squared_error.flatten(0, 1).mT.double().cpu().numpy()
    table = bootstrap_mean(errors, probing.confidence, probing.num_resamples, seed)
    table = table.set_axis(index).reset_index()
    table.insert(2, "kind", kind)
    return table.rename(columns={"mean": "squared_error"}).assign(
        r_squared=lambda rows: 1 - rows["squared_error"]
    )


def _attention_table(
    fitted: ProbeScores, layers: list[int], kind: str, probing: ProbingConfig
) -> pd.DataFrame:
    num_tokens = fitted.attention.shape[-1]
    index = pd.MultiIndex.from_product(
        [layers, probing.targets, range(num_tokens)], names=["layer", "target", "token"]
    )
    weights = pd.DataFrame({"attention": fitted.attention.flatten().cpu().numpy()}, index=index).reset_index()
    weights.insert(2, "kind", kind)
    return weights


def average_attention(learner: Learner, prompts: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """The learner's own attention weights (L, M, T, T), averaged over prompts."""
    where = resolve_device(device)
    model, num_prompts = learner.model.to(where), min(256, len(prompts["xs"]))
    xs, ys = (prompts[name][:num_prompts].to(where) for name in ("xs", "ys"))
    with torch.no_grad():
        total = sum(
            model.attention_weights(*batch).sum(1) for batch in zip(xs.split(32), ys.split(32), strict=True)
        )
    return {"attention": (total / num_prompts).cpu()}


def report_probing_metrics(scores: pd.DataFrame) -> dict[str, list[dict[str, float]]]:
    """Probe R² as metric histories whose step is the layer."""
    return {
        f"probe.{kind}.{target}": [
            {"step": int(layer), "value": float(value)}
            for layer, value in zip(rows["layer"], rows["r_squared"], strict=True)
        ]
        for (kind, target), rows in scores.groupby(["kind", "target"], sort=False)
    }


def draw_probe_scores(scores: pd.DataFrame) -> Figure:
    """Probe error against layer, a curve a target and kind."""
    return plot_probe_scores(scores)


def draw_probe_attention(attention: pd.DataFrame) -> Figure:
    """Where the probes look: attention over positions, a row a layer."""
    return plot_probe_attention(attention)


def draw_attention(attention: dict[str, Tensor]) -> Figure:
    """Where the learner looks: its mean attention maps, a panel a layer and head."""
    return plot_attention(attention["attention"].numpy())
