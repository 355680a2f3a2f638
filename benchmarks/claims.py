"""Numbers behind the claims of README and docs that no pipeline prints.

    python -m benchmarks.claims shifts        # where the learner that ships stops following OLS
    python -m benchmarks.claims candidates    # OLS beside fitted ridge, gradient descent, Newton
    python -m benchmarks.claims layers        # its layers beside the same families
    python -m benchmarks.claims ridge-as-steps
    python -m benchmarks.claims one-layer     # trains one-layer learners
    python -m benchmarks.claims two-layers    # trains two-layer learners
    python -m benchmarks.claims overlap       # how much of w an MLP finds in (Xᵀy, XᵀX), no learner
    python -m benchmarks.claims edits         # from the tables in docs/results: edit and power
    python -m benchmarks.claims appearance    # from the tables: first layer at equal thresholds

Each prints a Markdown table, has a fixed seed, and takes a minute or less on one CPU core, except
`one-layer` and `two-layers` (minutes). Squared differences are shares of Var(y) unless said.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.saved import load_learner
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.fitting import Split
from incontext_linear.probing.layerwise import read_predictions
from incontext_linear.tasks import draw_prompts, generator
from incontext_linear.training import Recipe, TrainingConfig, train

PROJECT = Path(__file__).parents[1]
SHIPPED = PROJECT / "data/06_models/pretrained"
RESULTS = PROJECT / "docs/results"
DIM, NUM_EXAMPLES = 8, 40
STEP_SIZE = 0.01
RESAMPLES = 2000
PENALTIES = np.logspace(-5, 2, 71)
GRADIENT_STEPS = np.unique(np.logspace(0, 3.5, 71).round()).astype(int)
NEWTON_STEPS = np.arange(0, 25)


# ---- Filters: every candidate is a function of the eigenvalues s of XᵀX ------------------------


class Spectrum(NamedTuple):
    """The k examples of every prompt in the eigenbasis of XᵀX, and the query in it; float64."""

    values: Tensor  # (B, d), s
    moment: Tensor  # (B, d), Xᵀy
    query: Tensor  # (B, d)

    @classmethod
    def of(cls, xs: Tensor, ys: Tensor, k: int) -> "Spectrum":
        """Of the first k examples of xs (B, n, d), ys (B, n); the query is ``xs[:, k]``."""
        seen, labels = xs[:, :k].double(), ys[:, :k].double()
        values, vectors = torch.linalg.eigh(seen.mT @ seen)
        moment = (vectors.mT @ (seen.mT @ labels.unsqueeze(-1))).squeeze(-1)
        query = (vectors.mT @ xs[:, k].double().unsqueeze(-1)).squeeze(-1)
        return cls(values.clamp(min=0), moment, query)

    def predict(self, inverse: Tensor) -> Tensor:
        """Predictions (B,) of the weights Σ inverse(s) vvᵀ Xᵀy."""
        return (inverse * self.moment * self.query).sum(-1)

    def least_squares(self) -> Tensor:
        """Minimum-norm least squares: 1/s, and 0 where s is rounding."""
        rounding = 1e-10 * self.values.amax(-1, keepdim=True)
        return self.predict(torch.where(self.values > rounding, 1 / self.values, 0.0))

    def ridge(self, penalty: float) -> Tensor:
        """1/(s + λ)."""
        return self.predict(1 / (self.values + penalty))

    def gradient_descent(self, num_steps: int, step_size: float = STEP_SIZE) -> Tensor:
        """(1 − (1 − 2αs)^m) / s, which is 2αm at s = 0."""
        safe = self.values.clamp(min=1e-12)
        return self.predict((1 - (1 - 2 * step_size * safe) ** int(num_steps)) / safe)

    def newton(self, num_steps: int) -> Tensor:
        """(1 − (1 − s²/F²)^(2^m)) / s with F = ‖XᵀX‖, as `IterativeNewton`."""
        safe = self.values.clamp(min=1e-12)
        size = safe.square().sum(-1, keepdim=True)
        left = torch.exp(2.0 ** int(num_steps) * torch.log1p(-safe.square() / size))
        return self.predict((1 - left) / safe)

    def family(self, name: str) -> Tensor:
        """Predictions (members, B) of a whole family, in the order of its grid."""
        member, grid = FAMILIES[name]
        return torch.stack([member(self, value) for value in grid])


FAMILIES: dict[str, tuple[Callable, np.ndarray]] = {
    "ridge": (Spectrum.ridge, PENALTIES),
    "gradient descent": (Spectrum.gradient_descent, GRADIENT_STEPS),
    "Newton": (Spectrum.newton, NEWTON_STEPS),
}


def squared(first: Tensor, second: Tensor) -> np.ndarray:
    """Squared differences as NumPy, float64."""
    return (first.double() - second.double()).square().numpy()


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap means (resamples, ...) over the last axis of values (..., prompts)."""
    count = values.shape[-1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.moveaxis(values @ (draws.T / count), -1, 0)


def between(resamples: np.ndarray) -> str:
    """A 95 % percentile interval of resamples, as text."""
    low, high = np.quantile(resamples, [0.025, 0.975], method="inverted_cdf")
    return f"[{short(low)}, {short(high)}]"


def short(number: float) -> str:
    """Two digits: 0.31, 71, 1.7e-5; from 1e6 on "diverges"."""
    if 100 <= number < 1000:
        return f"{number:.0f}"
    if 0.01 <= number < 100 or number == 0:
        return f"{number:.2g}"
    return f"{number:.1e}".replace("e-0", "e-").replace("e+0", "e") if number < 1e6 else "diverges"


# ---- Off the training distribution -------------------------------------------------------------

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def plain(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """x and w ~ N(0, I): what the learner was trained on. xs (B, 40, 8), ws (B, 8)."""
    return (
        torch.randn(count, NUM_EXAMPLES, DIM, generator=rng),
        torch.randn(count, DIM, generator=rng),
    )


def scaled(x: float = 1.0, w: float = 1.0) -> Draw:
    """Inputs and weights of another size."""

    def draw(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        xs, ws = plain(count, rng)
        return x * xs, w * ws

    return draw


def conditioned(eigenvalues: Tensor) -> Draw:
    """x ~ N(0, Q diag(eigenvalues) Qᵀ) with a random basis a prompt; the trace is set to d."""
    scales = (eigenvalues * DIM / eigenvalues.sum()).sqrt()

    def draw(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        xs, ws = plain(count, rng)
        bases = torch.linalg.qr(torch.randn(count, DIM, DIM, generator=rng)).Q
        return (xs * scales) @ bases.mT, ws

    return draw


def with_condition(number: float) -> Draw:
    """Covariance of a condition number, eigenvalues in geometric progression."""
    return conditioned(torch.logspace(0, float(np.log10(number)), DIM))


def of_rank(rank: int) -> Draw:
    """All inputs in one random subspace."""
    return conditioned((torch.arange(DIM) < rank).float())


def heavy_tailed(joint: bool) -> Draw:
    """Student's t, 3 degrees of freedom, variance 1: one scale a vector, or one a coordinate."""

    def draw(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        xs, ws = plain(count, rng)
        shape = (*xs.shape[:2], 1 if joint else DIM, 3)
        chi_squared = torch.randn(shape, generator=rng).square().sum(-1)
        return xs / chi_squared.sqrt(), ws  # (z / √(χ²/3)) / √3

    return draw


def changed(change: Callable[[Tensor], Tensor]) -> Draw:
    """Gaussian inputs after a change."""

    def draw(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        xs, ws = plain(count, rng)
        return change(xs), ws

    return draw


def repeat_examples(xs: Tensor) -> Tensor:
    """Every example twice in turn."""
    return xs.repeat_interleave(2, dim=1)[:, : xs.shape[1]]


def orthogonal_blocks(xs: Tensor) -> Tensor:
    """Blocks of d orthogonal vectors of length √d."""
    blocks = xs.unflatten(1, (-1, DIM))
    return (torch.linalg.qr(blocks).Q * DIM**0.5).flatten(1, 2)


SHIFTS: dict[str, Draw] = {
    "none": plain,
    "w × 2": scaled(w=2),
    "w × 3": scaled(w=3),
    "w × 5": scaled(w=5),
    "x × 0.3": scaled(x=0.3),
    "x × 0.5": scaled(x=0.5),
    "x × 2": scaled(x=2),
    "x × 3": scaled(x=3),
    "x × 3, w / 3": scaled(x=3, w=1 / 3),
    "query alone × 3": plain,
    "covariance of condition 32": with_condition(32),
    "covariance of condition 1,000": with_condition(1000),
    "inputs of rank 4": of_rank(4),
    "inputs of rank 2": of_rank(2),
    "positive orthant": changed(torch.abs),
    "mean shifted by 1": changed(lambda xs: xs + 1),
    "sphere of radius √8": changed(lambda xs: DIM**0.5 * xs / xs.norm(dim=-1, keepdim=True)),
    "orthogonal blocks": changed(orthogonal_blocks),
    "every example twice": changed(repeat_examples),
    "t₃, independent coordinates": heavy_tailed(joint=False),
    "t₃, one scale a vector": heavy_tailed(joint=True),
}


def shifted_prompts(name: str, k: int, count: int) -> tuple[Tensor, Tensor]:
    """Prompts with k examples and a query under a shift; noiseless."""
    xs, ws = SHIFTS[name](count, generator(0, f"claims {name}", k))
    xs = xs[:, : k + 1].clone()
    if name == "every example twice":
        xs[:, k] = torch.randn(count, DIM, generator=generator(1, f"claims {name}", k))
    if name == "query alone × 3":
        xs[:, k] *= 3
    return xs, (xs @ ws.unsqueeze(-1)).squeeze(-1)


@torch.inference_mode()
def shifts(count: int = 512) -> pd.DataFrame:
    """SPD to OLS of the shipped learner, its control, and two algorithms, per shift and k."""
    learner = load_learner(SHIPPED / "learner.safetensors").model
    control = load_learner(SHIPPED / "control.safetensors").model
    rows = []
    for name in SHIFTS:
        row: dict[str, object] = {"shift": name}
        for k in (16, 39):
            xs, ys = shifted_prompts(name, k, count)
            spectrum = Spectrum.of(xs, ys, k)
            ols, variance = spectrum.least_squares(), ys[:, k].double().square().mean().item()
            answer = learner(xs, ys)[:, k].double()
            share = squared(answer, ols) / variance
            row[f"SPD, k = {k}"] = f"{short(share.mean())} {between(resampled_means(share))}"
            row[f"slope, k = {k}"] = f"{(answer @ ols / (ols @ ols)).item():.2f}"
            if k == 16:
                others = {
                    "256 gradient steps": spectrum.gradient_descent(256),
                    "12 Newton iterations": spectrum.newton(12),
                }
                if name == "none":
                    others["control learner"] = control(xs, ys)[:, k]
                for other, predictions in others.items():
                    miss = squared(predictions, ols).mean() / variance
                    row[other] = short(miss)
        rows.append(row)
    return pd.DataFrame(rows)


# ---- Families fitted to the learner ------------------------------------------------------------


@torch.inference_mode()
def candidates(count: int = 2048) -> pd.DataFrame:
    """The member of each family nearest to the learner at each k, chosen on one half of the
    prompts and scored on the other, beside OLS.
    """
    learner = load_learner(SHIPPED / "learner.safetensors").model
    xs, ys, _ = draw_prompts(TaskConfig(), count, seed=0, stream="claims candidates")
    answers, rows = learner(xs, ys), []
    for k in (4, 7, 8, 9, 12, 16, 24, 32, 39):
        answer, spectrum, half = answers[:, k], Spectrum.of(xs, ys, k), count // 2
        to_ols = squared(answer, spectrum.least_squares())[half:]
        row: dict[str, object] = {"k": k, "SPD to OLS": f"{to_ols.mean():.1e}"}
        for name, (_, grid) in FAMILIES.items():
            misses = squared(spectrum.family(name), answer)
            misses = np.nan_to_num(misses, nan=1e300, posinf=1e300)
            fitted = resampled_means(misses[:, :half])
            best = misses[:, :half].mean(-1).argmin()
            ratio = resampled_means(np.stack((to_ols, misses[best, half:])))
            row[name] = f"{grid[best]:.2g} {between(grid[fitted.argmin(-1)].astype(float))}"
            nearer = to_ols.mean() / misses[best, half:].mean()
            row[f"OLS / {name}"] = f"{nearer:.2f} {between(ratio[:, 0] / ratio[:, 1])}"
        rows.append(row)
    return pd.DataFrame(rows)


@torch.inference_mode()
def layers(count: int = 1024, k: int = 16) -> pd.DataFrame:
    """The families nearest to what is read from each layer of the shipped learner, k = 16.

    Members are chosen on one half of the test prompts and scored on the other; ratios are paired.
    """
    learner = load_learner(SHIPPED / "learner.safetensors").model
    xs, ys, _ = draw_prompts(TaskConfig(), count, seed=0, stream="claims layers")
    order = torch.arange(count)
    split = Split(order[: count // 2], order[count // 2 : count * 5 // 8], order[count * 5 // 8 :])
    hidden = learner.embed(xs, ys)
    rows, spectrum = [], Spectrum.of(xs[split.test], ys[split.test], k)
    predictions = {name: spectrum.family(name) for name in FAMILIES}
    half, variance = len(split.test) // 2, ys.double().square().mean().item()
    for layer in range(len(learner.blocks) + 1):
        if layer:
            hidden = learner.blocks[layer - 1](hidden)
        if layer < 4:
            continue
        read = read_predictions(hidden.transpose(0, 1).unsqueeze(0), ys, split)[0, :, k]
        row: dict[str, object] = {"layer": layer}
        scored = {}
        for name, (_, grid) in FAMILIES.items():
            misses = squared(predictions[name], read) / variance
            best = misses[:, :half].mean(-1).argmin()
            scored[name] = misses[best, half:]
            row[name] = f"{grid[best]:.2g}"
            row[f"SPD to {name}"] = f"{scored[name].mean():.1e}"
        for name in ("gradient descent", "Newton"):
            means = resampled_means(np.stack((scored[name], scored["ridge"])))
            ratio = scored[name].mean() / scored["ridge"].mean()
            row[f"{name} / ridge"] = f"{ratio:.2f} {between(means[:, 0] / means[:, 1])}"
        rows.append(row)
    return pd.DataFrame(rows)


def ridge_as_steps(count: int = 4096, k: int = 16) -> pd.DataFrame:
    """Numbers of steps nearest to ridge with halving λ: what a halving cut-off reads as."""
    xs, ys, _ = draw_prompts(TaskConfig(), count, seed=0, stream="claims ridge")
    spectrum = Spectrum.of(xs, ys, k)
    steps = {
        "gradient descent": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
        "Newton": tuple(range(17)),
    }
    rows = []
    for power in range(5, -5, -1):
        ridge = spectrum.ridge(2.0**power)
        row: dict[str, object] = {"λ": 2.0**power}
        for name, numbers in steps.items():
            member = FAMILIES[name][0]
            row[name] = min(numbers, key=lambda m: squared(member(spectrum, m), ridge).mean())
        rows.append(row)
    return pd.DataFrame(rows)


# ---- Learners trained here ---------------------------------------------------------------------


def trained(dim: int, examples: int, shape: ModelConfig, seed: int, rate: float) -> torch.nn.Module:
    """A learner trained as the sweeps of conf/base train theirs."""
    training = TrainingConfig(
        optimizer="muon", num_steps=2000, learning_rate=rate, checkpoint_every=10**6
    )
    task = TaskConfig(dim=dim, num_examples=examples)
    return train(Recipe(task, shape, training, seed), "cpu").model.eval()


def one_layer(count: int = 4096) -> pd.DataFrame:
    """Risk of one-layer learners by heads and width, beside least squares on the first m."""
    rows = []
    for dim, heads, width, seed in (
        (2, 2, 32, 0),
        (2, 4, 64, 0),
        (2, 8, 64, 0),
        (2, 8, 64, 1),
        (2, 8, 128, 0),
        (3, 2, 32, 0),
        (3, 8, 128, 0),
    ):
        examples = 4 * dim
        shape = ModelConfig(num_layers=1, num_heads=heads, width=width)
        model = trained(dim, examples, shape, seed, 3e-3)
        task = TaskConfig(dim=dim, num_examples=examples)
        xs, ys, _ = draw_prompts(task, count, seed=0, stream="claims one layer")
        with torch.inference_mode():
            answer = model(xs, ys)[:, -1]
        row: dict[str, object] = {"d": dim, "heads": heads, "H": width, "seed": seed}
        row["risk / Var(y)"] = f"{squared(answer, ys[:, -1]).mean() / dim:.2f}"
        for m in (0, 1, 2):
            xs_m = torch.cat((xs[:, :m], xs[:, -1:]), 1)
            spectrum = Spectrum.of(xs_m, torch.cat((ys[:, :m], ys[:, -1:]), 1), m)
            first = spectrum.least_squares() if m else torch.zeros(count)
            row[f"SPD to first_{m}"] = f"{squared(answer, first).mean() / dim:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def two_layers(count: int = 2048) -> pd.DataFrame:
    """The best member of each family for two-layer learners (d = 3), mean over k, three seeds."""
    rows, dim, examples = [], 3, 12
    for seed in range(3):
        shape = ModelConfig(num_layers=2, num_heads=2, width=32)
        model = trained(dim, examples, shape, seed, 5e-3)
        task = TaskConfig(dim=dim, num_examples=examples)
        xs, ys, _ = draw_prompts(task, count, seed=0, stream="claims two layers")
        with torch.inference_mode():
            answer = model(xs, ys)
        spectra = {k: Spectrum.of(xs, ys, k) for k in range(1, examples)}
        rates = np.array([0.005, 0.01, 0.02, 0.03, 0.05])
        grids: dict[str, list[tuple[str, Callable]]] = {
            "ridge": [(f"λ = {v:.2g}", lambda s, v=v: s.ridge(v)) for v in PENALTIES],
            "Newton": [(f"m = {m}", lambda s, m=m: s.newton(m)) for m in NEWTON_STEPS],
            "gradient descent": [
                (f"m = {m}, α = {a:g}", lambda s, m=m, a=a: s.gradient_descent(m, a))
                for a in rates
                for m in GRADIENT_STEPS
            ],
        }
        row: dict[str, object] = {"seed": seed}
        half = count // 2
        for name, members in grids.items():
            misses = np.stack(
                [
                    np.mean([squared(f(s), answer[:, k]) for k, s in spectra.items()], axis=0)
                    for _, f in members
                ]
            )
            misses = np.nan_to_num(misses, nan=1e300, posinf=1e300)
            best = misses[:, :half].mean(-1).argmin()
            row[name] = f"{misses[best, half:].mean():.3f} ({members[best][0]})"
        ols = np.mean([squared(s.least_squares(), answer[:, k]) for k, s in spectra.items()])
        row["OLS"] = f"{ols:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def overlap(count: int = 4096, k: int = 16, dim: int = 4) -> pd.DataFrame:
    """Share of w_OLS that (Xᵀy, XᵀX) leave to a linear map and to an MLP of 64 units, with no
    learner: what a probe finds that reads these two perfectly. 2,458 training prompts, as probes.
    """
    task = TaskConfig(dim=dim, num_examples=k + 1)
    xs, ys, _ = draw_prompts(task, count, seed=0, stream="claims overlap")
    seen, labels = xs[:, :k].double(), ys[:, :k].double()
    gram, moment = seen.mT @ seen, (seen.mT @ labels.unsqueeze(-1)).squeeze(-1)
    upper = gram[:, *torch.triu_indices(dim, dim)]
    target = torch.linalg.solve(gram, moment).float()
    inputs = torch.cat((moment, upper), 1).float()
    train_part, stop_part, test = slice(0, 2458), slice(2458, 3072), slice(3072, None)
    center, spread = inputs[train_part].mean(0), inputs[train_part].std(0)
    inputs = (inputs - center) / spread
    variance = target[test].var(0, correction=0).sum()
    rows = []
    for name, given in {"Xᵀy": inputs[:, :dim], "Xᵀy and XᵀX": inputs}.items():
        design = torch.cat((given, torch.ones(count, 1)), 1)
        solution = torch.linalg.lstsq(design[train_part], target[train_part]).solution
        linear = (design[test] @ solution - target[test]).square().mean(0).sum() / variance
        torch.manual_seed(0)
        mlp = torch.nn.Sequential(
            torch.nn.Linear(given.shape[1], 64), torch.nn.GELU(), torch.nn.Linear(64, dim)
        )
        optimizer = torch.optim.Adam(mlp.parameters(), lr=3e-3)
        best, kept = float("inf"), float("nan")
        for step in range(4000):
            batch = torch.randint(2458, (256,))
            loss = (mlp(given[batch]) - target[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 49:
                with torch.inference_mode():
                    missed = (mlp(given) - target).square()
                if (stopped := missed[stop_part].mean().item()) < best:
                    best, kept = stopped, (missed[test].mean(0).sum() / variance).item()
        rows.append({"given": name, "linear": f"{linear:.3f}", "MLP, 64 units": f"{kept:.3f}"})
    return pd.DataFrame(rows)


# ---- From the committed tables -----------------------------------------------------------------


def edits(target: str = "moment") -> pd.DataFrame:
    """Pattern edit beside what its probe could account for: R² × interchange of the context."""
    rows = []
    for size, prefix in (("d = 8", "paper"), ("d = 4", "paper_d4")):
        scores = pd.read_csv(RESULTS / f"{prefix}_probe_scores.csv")
        causality = pd.read_csv(RESULTS / f"{prefix}_causality.csv")
        for k in (16, 39):
            linear = scores.query("kind == 'linear' and target == @target and examples_seen == @k")
            at_k = causality.query("examples_seen == @k")
            still_open = at_k.query("method == 'interchange_context'").set_index("layer").fraction
            edit = at_k.query("method == 'pattern_edit' and target == @target").set_index("layer")
            for layer, r_squared in linear.set_index("layer").r_squared.items():
                row = edit.loc[layer]
                rows.append(
                    {
                        "learner": size,
                        "k": k,
                        "layer": layer,
                        "R²": f"{r_squared:.2f}",
                        "open": f"{still_open[layer]:.2f}",
                        "R² × open": f"{max(r_squared, 0) * still_open[layer]:.3f}",
                        "pattern edit": f"{row.fraction:.3f} [{row.low:.3f}, {row.high:.3f}]",
                    }
                )
    return pd.DataFrame(rows)


def appearance() -> pd.DataFrame:
    """First layer at which a target's selectivity reaches a threshold, at d = 8 and d = 4."""
    tables = []
    for dim, name in ((8, "paper"), (4, "paper_d4")):
        table = pd.read_csv(RESULTS / f"{name}_selectivity.csv")
        for threshold in ProbingConfig().appearance:
            reached = table[table["selectivity"] >= threshold]
            layers = reached.groupby(["kind", "hidden_units", "examples_seen", "target"])["layer"]
            wide = layers.min().unstack().reindex(columns=["moment", "least_squares", "ridge"])
            tables.append(wide.reset_index().assign(d=dim, threshold=threshold))
    return pd.concat(tables, ignore_index=True)


CLAIMS: dict[str, Callable[[], pd.DataFrame]] = {
    "shifts": shifts,
    "candidates": candidates,
    "layers": layers,
    "ridge-as-steps": ridge_as_steps,
    "one-layer": one_layer,
    "two-layers": two_layers,
    "overlap": overlap,
    "edits": edits,
    "appearance": appearance,
}


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|---" * len(table.columns) + "|"]
    for _, row in table.iterrows():
        cells = ("" if pd.isna(cell) else str(cell) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables that are named."""
    parser = argparse.ArgumentParser(description="Numbers behind the claims of README and docs.")
    parser.add_argument("claims", nargs="+", choices=list(CLAIMS))
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.claims:
        print(f"\n{name}\n\n{markdown(CLAIMS[name]())}", flush=True)


if __name__ == "__main__":
    main()
