"""Learners that are trained together: each is what it would be alone, whatever the others do."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from incontext_linear import tasks
from incontext_linear.config import LearnerConfig, ModelConfig, TaskConfig
from incontext_linear.learner import Learner
from incontext_linear.learner.attention import causal_attention, plain_attention
from incontext_linear.tasks import draw_prompts, generator
from incontext_linear.training import Recipe, TrainingDivergedError, train, train_stacked
from incontext_linear.training.checkpoints import CheckpointStore
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.loop import TrainingRun
from incontext_linear.training.stacked import StackedRun

TASK = TaskConfig(dim=2, num_examples=5)
MODEL = ModelConfig(num_layers=2, num_heads=2, width=8)
TRAINING = TrainingConfig(
    num_steps=20, batch_size=8, learning_rate=2e-3, log_every=4, checkpoint_every=5
)


def recipe(seed: int = 0, task: dict[str, Any] | None = None, **training: Any) -> Recipe:
    own = TaskConfig.model_validate(TASK.model_dump() | (task or {}))
    return Recipe(own, MODEL, TRAINING.model_copy(update=training), seed)


def various(**training: Any) -> list[Recipe]:
    """All that learners of one stack may differ in."""
    return [
        recipe(0, **training),
        recipe(1, {"noise_std": 0.5}, **training),
        recipe(0, {"pool_size": 4}, **(training | {"learning_rate": 1e-2})),
        recipe(2, {"weights": "normal*1+2,normal*1+-2"}, **training),
    ]


def unclipped(seed: int, learning_rate: float = 1e6) -> Recipe:
    """Diverges at the rate that it has by default."""
    return recipe(seed, learning_rate=learning_rate, gradient_clip=1e9, warmup_fraction=0.5)


def together(recipes: Sequence[Recipe], store: CheckpointStore | None = None) -> list[Learner]:
    ended = train_stacked(recipes, "cpu", [store] * len(recipes) if store else None)
    assert all(isinstance(one, Learner) for one in ended)
    return [one for one in ended if isinstance(one, Learner)]


def assert_close(first: Learner, second: Learner, tolerance: float) -> None:
    """Equal weights and histories, to a tolerance."""
    assert first.task == second.task
    for name, tensor in first.model.state_dict().items():
        other = second.model.state_dict()[name]
        torch.testing.assert_close(tensor, other, rtol=tolerance, atol=tolerance)
    for row, other in zip(first.record["history"], second.record["history"], strict=True):
        assert row == pytest.approx(other, rel=tolerance)


def assert_alike(first: Learner, second: Learner) -> None:
    """Equal but for rounding, by what is predicted: a key's bias has no gradient but rounding, of
    which Adam makes a step like any other.
    """
    prompts = draw_prompts(TASK, 64, 0)
    with torch.no_grad():
        found, other = (one.model(prompts.xs, prompts.ys) for one in (first, second))
    torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)
    for row, twin in zip(first.record["history"], second.record["history"], strict=True):
        assert row == pytest.approx(twin, rel=1e-4)


def assert_same(first: Learner, second: Learner) -> None:
    assert first.record == second.record
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64; the pool of weight vectors is kept between calls, and drawn anew."""
    tasks._pool.cache_clear()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    tasks._pool.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "loss"), [("adamw", "uniform"), ("muon", "likelihood")])
def test_each_learner_is_what_it_would_be_alone(optimizer, loss, double):
    settings: dict[str, Any] = {"weight_decay": 0.1, "gradient_clip": 0.3, "num_steps": 10}
    recipes = various(optimizer=optimizer, loss=loss, **settings)
    for found, one in zip(together(recipes), recipes, strict=True):
        assert found.model.positions.dtype == torch.float64
        assert_close(found, train(one, "cpu"), 1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.11's own, where it compiles
@pytest.mark.parametrize("num_examples", [5, 20])  # on either side of `stacked.SHORT`
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fast", [False, True])
def test_each_learner_is_what_it_would_be_alone_on_a_gpu(num_examples, precision, fast):
    """In bfloat16, where rounding grows from step to step, by the loss alone."""
    switches = {"precision": precision, "compile": fast, "own_kernels": False, "cuda_graph": fast}
    task = {"num_examples": num_examples}
    recipes = [recipe(seed, task, **switches) for seed in range(4)]
    for found, one in zip(train_stacked(recipes, "cuda"), recipes, strict=True):
        assert isinstance(found, Learner)
        alone, prompts = train(one, "cuda"), draw_prompts(one.task, 64, 0)
        losses = [each.record["history"][0]["loss"] for each in (found, alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
        if precision == "float32":
            with torch.no_grad():
                theirs, own = (each.model(prompts.xs, prompts.ys) for each in (found, alone))
            assert torch.nn.functional.mse_loss(theirs, own) < 1e-2 * own.var()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"norm": "none", "positions": "rotary", "mlp_width": 0},
        {"positions": "none"},
        {"type": "looped", "num_loops": 2},
        {"type": "linear_attention", "num_layers": 2},
        {"type": "linear_attention", "context": "causal", "num_heads": 2, "mlp_width": 6},
        {"type": "delta"},
    ],
    ids=lambda model: " ".join(map(str, model.values())),
)
def test_other_architectures_too_are_what_they_would_be_alone(model, double):
    sizes = {"num_layers": 1, "num_heads": 1} | ({} if "context" in model else {"width": 8})
    config = LearnerConfig.model_validate(sizes | model)
    recipes = [replace(one, model=config) for one in various(num_steps=6)]
    for found, one in zip(together(recipes), recipes, strict=True):
        assert_close(found, train(one, "cpu"), 1e-8)


def test_an_architecture_that_cannot_be_mapped_is_refused_by_its_name():
    recurrent = [
        replace(recipe(seed), model=LearnerConfig.model_validate({"type": "gru", "width": 4}))
        for seed in (0, 1)
    ]
    with pytest.raises(ValueError, match=r"model\.type: 'gru' given; allowed in a stack: transfor"):
        StackedRun(recurrent, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_in_float32_they_differ_by_rounding(optimizer):
    recipes = various(optimizer=optimizer, num_steps=10)
    for found, one in zip(together(recipes), recipes, strict=True):
        assert_alike(found, train(one, "cpu"))


@pytest.mark.slow
def test_bfloat16_matrices_follow_the_float32_losses():
    recipes = various(precision="bfloat16", num_steps=8)[:3]
    for found, one in zip(together(recipes), various(num_steps=8)[:3], strict=True):
        losses, plain = (
            torch.tensor([row["loss"] for row in learner.record["history"]])
            for learner in (found, train(one, "cpu"))
        )
        torch.testing.assert_close(losses, plain, rtol=0.03, atol=0)


def test_one_that_diverges_is_frozen_and_reported_and_the_others_go_on(tmp_path):
    store = CheckpointStore(tmp_path)
    recipes = [unclipped(0, 2e-3), unclipped(1)]
    sound, diverged = train_stacked(recipes, "cpu", [store, store])
    assert isinstance(sound, Learner)
    assert_alike(sound, train(recipes[0], "cpu"))
    with pytest.raises(TrainingDivergedError) as alone:
        train(recipes[1], "cpu")
    assert isinstance(diverged, TrainingDivergedError)
    step = str(alone.value).partition(":")[0]
    assert str(diverged).startswith(f"{step}: the loss is")
    assert "no checkpoint had been saved" in str(diverged)


def test_a_frozen_learner_stays_finite_and_still():
    run = StackedRun([recipe(0, loss="likelihood"), recipe(1, loss="likelihood")], "cpu")
    run.start(None)
    run.advance()
    with torch.no_grad():
        run.runs[1].training_step.weights()["positions"].fill_(float("nan"))
    for _ in range(6):
        run.advance()
    assert list(run.diverged) == [1]
    assert [position for position, _ in run.alive()] == [0]
    for tensor in run.runs[1].training_step.weights().values():
        assert not tensor.any()


class KilledError(Exception):
    """Stands for a signal that ends the process."""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in a step", "between two learners"])
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(tmp_path, monkeypatch, where):
    recipes = [
        unclipped(0, 2e-3),
        unclipped(1),
        unclipped(2, 1e-3),
    ]
    stores = [CheckpointStore(tmp_path / str(position)) for position in range(3)]
    unbroken = train_stacked(recipes, "cpu")
    kill_at(where, monkeypatch)
    with pytest.raises(KilledError):
        train_stacked(recipes, "cpu", stores)
    monkeypatch.undo()
    steps: list[int] = []
    ended = train_stacked(
        recipes, "cpu", stores, lambda position, report: steps.append(report.step)
    )
    assert min(steps) == {"in a step": 16, "between two learners": 12}[where]
    for position in (0, 2):
        first, second = ended[position], unbroken[position]
        assert isinstance(first, Learner)
        assert isinstance(second, Learner)
        assert_same(first, second)
    assert str(ended[1]).partition(";")[0] == str(unbroken[1]).partition(";")[0]


def kill_at(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run at step 17, or when one learner's checkpoint of step 15 is written."""
    count, save, saved = TrainingRun.count, CheckpointStore.save, []

    def counting(run, loss):
        if where == "in a step" and run.step == 17:
            raise KilledError
        return count(run, loss)

    def saving(store, run, checkpoint):
        if where == "between two learners" and saved.count(15) == 1:
            raise KilledError
        saved.append(checkpoint.step)
        return save(store, run, checkpoint)

    monkeypatch.setattr(TrainingRun, "count", counting)
    monkeypatch.setattr(CheckpointStore, "save", saving)


@pytest.mark.slow
def test_checkpoints_of_a_stack_and_of_a_run_alone_are_the_same_thing(tmp_path):
    store, recipes = CheckpointStore(tmp_path), various()[:2]
    together(recipes, store)
    steps: list[int] = []
    alone = train(recipes[1], "cpu", store, lambda report: steps.append(report.step))
    assert steps == []  # the last step has a checkpoint
    assert_alike(alone, train(recipes[1], "cpu"))


@pytest.mark.slow
def test_learners_without_a_common_step_begin_anew(tmp_path):
    store, recipes = CheckpointStore(tmp_path), various()[:2]
    unbroken = together(recipes, store)
    shutil.rmtree(store.paths(TrainingRun(recipes[0], "cpu").name)[0].parent)
    for found, one in zip(together(recipes, store), unbroken, strict=True):
        assert_same(found, one)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (recipe(1, optimizer="muon"), "differ in more than seed, task and learning rate"),
        (recipe(1, {"num_examples": 6}), "differ in more than seed, task and learning rate"),
        (recipe(0), "one is given twice"),
    ],
)
def test_recipes_that_cannot_be_stacked_are_refused(second, says):
    with pytest.raises(ValueError, match=says):
        StackedRun([recipe(0), second], "cpu")


def test_plain_attention_is_causal_attention():
    packed = torch.randn(3, 7, 24, generator=generator(0, "test"), dtype=torch.float64)
    torch.testing.assert_close(plain_attention(packed, 2), causal_attention(packed, 2))


PROGRAM = Path(__file__).parent / "programs" / "compiled_stack.py"


@pytest.mark.slow
def test_layers_that_are_traced_for_the_compiler_train_as_plain_ones():
    # In a process of its own: the compiler cannot see through the tests' shape checks.
    subprocess.run([sys.executable, str(PROGRAM)], check=True, capture_output=True)
