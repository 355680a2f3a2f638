"""Uses the package as one who installed it alone does: draws prompts, asks algorithms, judges and
probes networks, trains one. Run outside the repository; it prints how long the imports took.
"""

import importlib
import pkgutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

start = time.perf_counter()
import torch  # noqa: E402
from torch import nn  # noqa: E402

torch_done = time.perf_counter()
from incontext_linear import answer, learner, predictors, probing, tasks  # noqa: E402
from incontext_linear.comparison.identification import IdentificationConfig  # noqa: E402
from incontext_linear.config import ModelConfig, TaskConfig  # noqa: E402
from incontext_linear.probing.config import ProbingConfig  # noqa: E402

done = time.perf_counter()

TASK = TaskConfig(dim=2, num_examples=6)
SCIENCE = [
    "comparison",
    "construction",
    "dynamics",
    "learner",
    "phase_diagram",
    "predictors",
    "probing",
    "statistics",
    "training",
]


class AsNetwork(nn.Module):
    """An algorithm that the verdict must name."""

    def forward(self, xs, ys):
        return predictors.Ridge(penalty=1.0)(xs, ys)


def import_all() -> int:
    """Every module of the science but the GPU's kernels, which Triton compiles."""
    names = []
    for package in SCIENCE:
        found = importlib.import_module(f"incontext_linear.{package}")
        below = pkgutil.walk_packages(found.__path__, f"{found.__name__}.")
        names += [module.name for module in below if ".kernels." not in module.name]
    for name in names:
        importlib.import_module(name)
    return len(names)


def compare() -> None:
    few = IdentificationConfig(
        shifts={"input_scale": (3.0,), "label_outlier": (10.0,)},
        num_calibration_prompts=32,
        num_prompts=64,
        num_confirmation_prompts=64,
        num_adversarial_pairs=0,
    )
    found = answer.compare(
        AsNetwork(), TASK, identification=few, num_prompts=64, num_weight_prompts=4
    )
    assert found.verdict.startswith("After 4 examples (k = 2d) the learner is nearest to ridge_1 ")
    assert "ridge" in found.identification.verdict.survivors, found.verdict
    print(found.verdict)


def probe(folder: Path) -> None:
    """A transformer, saved and loaded, and what can be read from its layers."""
    config = ModelConfig(num_layers=1, num_heads=2, width=16)
    network = learner.Transformer(2, 6, config).initialize(torch.Generator().manual_seed(0))
    learner.save_learner(folder / "learner.safetensors", learner.Learner(network, TASK))
    found = learner.load_learner(folder / "learner.safetensors")
    prompts = tasks.draw_prompts(TASK, 200, seed=0)
    assert torch.equal(found.model(prompts.xs, prompts.ys), network(prompts.xs, prompts.ys))
    settings = ProbingConfig.model_validate({"fit": {"num_steps": 200, "hidden_units": []}})
    chosen = probing.select(found, prompts._asdict(), settings, "cpu", seed=0)
    states = probing.collect_hidden_states(found, chosen)
    fit = probing.fit_probes(states, chosen.layers, chosen.columns, settings.fit, seed=0)
    scores = probing.score_table(fit.error_table("learner"), settings, seed=0)
    assert set(scores["layer"]) == {0, 1}
    assert scores["squared_error"].between(0, 3).all()
    print(scores[["target", "layer", "r_squared"]].to_string(index=False))


def train() -> None:
    """A step of training changes the weights."""
    from incontext_linear.training import Recipe, TrainingConfig
    from incontext_linear.training import train as train_learner

    config = ModelConfig(num_layers=1, num_heads=2, width=16)
    recipe = Recipe(TASK, config, TrainingConfig(num_steps=3, batch_size=8), 0)
    trained = train_learner(recipe, "cpu")
    assert trained.record["history"]


if __name__ == "__main__":
    prompts = tasks.draw_prompts(TASK, 8, seed=0)
    solved = predictors.OrdinaryLeastSquares()(prompts.xs.double(), prompts.ys.double())
    assert torch.allclose(solved[:, 2:], prompts.ys[:, 2:].double(), atol=1e-4)
    compare()
    with TemporaryDirectory() as folder:
        probe(Path(folder))
    train()
    print(f"{import_all()} modules; importing PyTorch {torch_done - start:.2f} s, ", end="")
    print(f"the package {done - torch_done:.2f} s")
