"""Every architecture through what the pipelines do with a learner, at the smallest sizes."""

from pathlib import Path

import pytest
import torch

from incontext_linear.comparison.curves import estimate_learner_weights, predict_with_learner
from incontext_linear.comparison.filters import FilterConfig
from incontext_linear.comparison.filters.layers import layer_filters
from incontext_linear.config import (
    DataGenerationConfig,
    EvaluationConfig,
    LearnerConfig,
    TaskConfig,
)
from incontext_linear.learner import Learner, load_learner, save_learner
from incontext_linear.learner.attention_maps import average_attention
from incontext_linear.learner.registry import LEARNERS
from incontext_linear.pipelines.data_generation.nodes import draw_probing_prompts
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.controls import (
    control_recipe,
    fit_controls,
    fit_learner,
    fit_random_targets,
)
from incontext_linear.probing.interventions import measure_causality
from incontext_linear.probing.layerwise import measure_progress
from incontext_linear.probing.selection import select
from incontext_linear.probing.states import collect_hidden_states
from incontext_linear.tasks import draw_prompts
from incontext_linear.training import Recipe, train
from incontext_linear.training.checkpoints import CheckpointStore
from incontext_linear.training.config import TrainingConfig

pytestmark = pytest.mark.slow

TASK = TaskConfig(dim=2, num_examples=5)
TRAINING = TrainingConfig(
    num_steps=4, batch_size=8, log_every=2, checkpoint_every=2, optimizer="muon", loss="likelihood"
)
PROBING = ProbingConfig.model_validate(
    {
        "context_lengths": [3, None],
        "targets": ["moment", "least_squares"],
        "fit": {"hidden_units": [4], "num_seeds": 1, "num_steps": 5, "batch_size": 16},
        "interventions": {"num_pairs": 8, "targets": ["moment"]},
        "layerwise": {"gradient_steps": [1, 2], "newton_steps": [1, 2]},
        "bootstrap": {"num_resamples": 20},
    }
)
FILTERS = FilterConfig(
    num_prompts=40,
    num_queries=6,
    conditions=(1.0, 10.0),
    layer_families=("ridge", "least_squares"),
    num_bins=4,
    bin_prompts=4,
    num_resamples=20,
)
SMALL = {
    "transformer": {"num_layers": 2, "num_heads": 2, "width": 8},
    "joint_transformer": {"num_layers": 2, "num_heads": 2, "width": 8},
    "looped": {"num_layers": 1, "num_loops": 2, "num_heads": 2, "width": 8},
    "linear_attention": {"num_layers": 2},
    "gru": {"num_layers": 2, "width": 8},
    "lstm": {"num_layers": 2, "width": 8},
    "delta": {"num_layers": 2, "num_heads": 2, "width": 8},
}


def recipe_of(name: str, num_steps: int = 4) -> Recipe:
    config = LearnerConfig.model_validate({"type": name, **SMALL[name]})
    return Recipe(TASK, config, TRAINING.model_copy(update={"num_steps": num_steps}), 0)


@pytest.fixture(scope="module", params=SMALL)
def learner(request) -> Learner:
    return train(recipe_of(request.param), "cpu")


def test_every_type_stands_here():
    assert SMALL.keys() == LEARNERS.keys()


def test_it_is_trained_saved_and_read_again(learner: Learner, tmp_path: Path):
    path = tmp_path / "learner.safetensors"
    save_learner(path, learner)
    again = load_learner(path, (TASK, learner.config))
    prompts = draw_prompts(TASK, 3, seed=0)
    assert torch.equal(again.model(*prompts[:2]), learner.model(*prompts[:2]))
    assert again.config == learner.config
    assert again.record["history"][-1]["step"] == 4
    other = LearnerConfig.model_validate({"num_layers": 3, "num_heads": 1, "width": 4})
    with pytest.raises(ValueError, match=r"has shape \[dim=2 .*but the parameters ask for"):
        load_learner(path, (TASK, other))


def test_a_training_that_was_cut_goes_on_to_the_same_weights(learner: Learner, tmp_path: Path):
    store, whole = CheckpointStore(tmp_path), recipe_of(learner.config.type)

    class CutError(Exception):
        pass

    def cut(progress):
        if progress.step == 4:
            raise CutError

    with pytest.raises(CutError):
        train(whole, "cpu", store, cut)
    assert len(store.paths(whole.run_name(torch.device("cpu")))) == 1
    resumed = train(whole, "cpu", store)
    for name, weights in learner.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weights), name


def test_it_is_compared(learner: Learner):
    prompts = draw_prompts(TASK, 6, seed=0)._asdict()
    queries = {"queries": torch.randn(3, 6, 2)}
    (predictions,) = predict_with_learner(learner, prompts, "cpu").values()
    assert predictions.shape == (6, 5)
    weights = estimate_learner_weights(learner, prompts, queries, "cpu")["weights"]
    assert weights.shape == (3, 5, 2)
    assert weights.isfinite().all()


def test_it_is_probed_and_intervened_on_beside_its_controls(learner: Learner):
    prompts = draw_prompts(TASK, 64, seed=0)._asdict()
    selection = select(learner, prompts, PROBING, "cpu", 0)
    hidden = collect_hidden_states(learner, selection)
    assert hidden.shape[0] == len(learner.model.blocks) + 1
    errors, _, readouts = fit_learner(hidden, learner, selection, PROBING, 0)
    assert errors["squared_error"].notna().all()
    recipe = Recipe(learner.task, learner.config, TRAINING, 0)
    control = train(control_recipe(recipe, 2), "cpu")
    assert type(control.model) is type(learner.model)
    shape = learner.task, learner.config
    networks = fit_controls(control, *shape, selection, PROBING, 0)
    assert set(networks["source"]) == {"control_learner", "untrained_learner"}
    assert len(fit_random_targets(hidden, selection, PROBING, 0)) == len(networks) / 2
    moved = measure_causality(learner, selection, readouts, PROBING, 0)
    # All tokens of the embedding are the donor's but the query's own: so is the answer.
    whole = moved[(moved["method"] == "interchange_context") & (moved["layer"] == 0)]
    assert whole["fraction"].tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    progress, nearest = measure_progress(hidden, learner, selection, PROBING, 0)
    assert {"gradient_descent", "learner"} <= set(progress["algorithm"])
    assert len(nearest) > 0
    maps = average_attention(learner, prompts, "cpu")["attention"]
    assert len(maps) == (2 if learner.config.type == "transformer" else 0)


@pytest.mark.parametrize("times", [2, 4])
def test_it_is_probed_on_longer_prompts_where_it_takes_them(learner: Learner, times: int):
    evaluation = EvaluationConfig(task={"num_examples": times * TASK.num_examples})
    generation = DataGenerationConfig(num_probing_prompts=64)
    prompts = draw_probing_prompts(TASK, evaluation, generation, seed=0)
    if not learner.config.any_length:
        with pytest.raises(ValueError, match="at most 5 examples"):
            select(learner, prompts, PROBING, "cpu", 0)
        return
    selection = select(learner, prompts, PROBING, "cpu", 0)
    assert selection.context_lengths == [3, times * TASK.num_examples - 1]
    hidden = collect_hidden_states(learner, selection)
    errors, _, readouts = fit_learner(hidden, learner, selection, PROBING, 0)
    assert set(errors["examples_seen"]) == set(selection.context_lengths)
    assert errors["squared_error"].notna().all()
    moved = measure_causality(learner, selection, readouts, PROBING, 0)
    whole = moved[(moved["method"] == "interchange_context") & (moved["layer"] == 0)]
    assert whole["fraction"].tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


def test_its_layers_have_filters(learner: Learner):
    found = layer_filters(learner.model, TASK, FILTERS, seed=0)
    assert set(found.bins["layer"]) <= set(range(len(learner.model.blocks) + 1))
    assert len(found.bins) > 0
