"""Path patching, head ablation, attention patterns and readings against direct computations."""

from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from incontext_linear.config import BootstrapConfig, ModelConfig, TaskConfig
from incontext_linear.construction import gradient_descent
from incontext_linear.construction.config import FLOAT32
from incontext_linear.learner import Transformer
from incontext_linear.predictors import GradientDescent, OrdinaryLeastSquares, Ridge
from incontext_linear.probing.alignment_config import PathsConfig, ReadingsConfig
from incontext_linear.probing.exchange import PromptPairs, prompt_of
from incontext_linear.probing.paths import (
    QueryReading,
    ablate_heads,
    classify_attention,
    trace_paths,
)
from incontext_linear.probing.query_readings import answers_along, read_queries
from incontext_linear.tasks import draw_prompts, generator

TASK = TaskConfig(dim=2, num_examples=6)
FEW = BootstrapConfig(num_resamples=50)


@pytest.fixture(scope="module")
def learner() -> Any:
    model = Transformer(2, 6, ModelConfig(num_layers=2, num_heads=2, width=16))
    return model.initialize(generator(0, "test")).eval()


def test_no_edge_is_the_recipients_answer_and_all_edges_are_the_donors(learner: Any):
    pairs = PromptPairs.draw(TASK, 6, 4, 0, "test")
    sets = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    sets[1] = True
    unchanged, exchanged = QueryReading.of(learner, pairs).answers(sets)
    donors = pairs.donor._replace(query=pairs.recipient.query)
    for answers, prompt in ((unchanged, pairs.recipient), (exchanged, donors)):
        expected = learner(*prompt_of(prompt))[:, -1]
        torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


def test_one_edge_changes_the_keys_and_values_of_its_head_and_tokens(learner: Any):
    pairs = PromptPairs.draw(TASK, 6, 4, 0, "test")
    edge = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    edge[0, 1, 0, 1] = True  # second block, first head, y-tokens
    answers = QueryReading.of(learner, pairs).answers(edge)[0]
    first, last = learner.blocks
    own, other = (first(learner.embed(*prompt_of(part))) for part in (pairs.recipient, pairs.donor))
    packed, changed = (last.attention.project_in(last.attention_norm(h)) for h in (own, other))
    parts, from_donor = (p.unflatten(-1, (3, 2, 8)).clone() for p in (packed, changed))
    parts[:, 1:8:2, 1:, 0] = from_donor[:, 1:8:2, 1:, 0]
    query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    hidden = own + last.attention.project_out(mixed.transpose(1, 2).flatten(-2))
    expected = learner.read((hidden + last.mlp(hidden))[:, -1])
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


def test_constructed_descent_is_read_through_one_edge():
    network = gradient_descent(2, 6, step_size=0.03, num_steps=2).float()
    config = PathsConfig(num_pairs=32, num_random_sets=4)
    edges, scores = trace_paths(network, TASK, 4, config, FEW, 0)
    assert edges[["layer", "tokens"]].to_numpy().tolist() == [[3, "y_tokens"]]
    shares = scores.set_index("edges")["share"]
    assert shares["all"] == pytest.approx(1)
    assert shares["chosen"] > 0.99
    assert shares["without_chosen"] < 0
    assert shares["random"] < 0.5


def test_ablating_a_head_puts_its_mean_everywhere(learner: Any):
    table = ablate_heads(learner, TASK, 4, 32, 0)
    assert len(table) == 4
    prompts = draw_prompts(TASK, 32, 0, 0, "head ablation")
    xs, ys = prompts.xs[:, :5], prompts.ys[:, :5]
    hidden = learner.blocks[0](learner.embed(xs, ys))
    attention, block = learner.blocks[1].attention, learner.blocks[1]
    mixed = attention.mix(attention.project_in(block.attention_norm(hidden)), 2).clone()
    mixed[..., 8:] = mixed[..., 8:].mean(0)
    after = hidden + attention.project_out(mixed)
    answers = learner.predict(after + block.mlp(after))[:, -1]
    reference = OrdinaryLeastSquares()(xs, ys)[:, -1]
    row = table.query("layer == 2 and head == 1").iloc[0]
    assert row["spd"] == pytest.approx(((answers - reference).square().mean() / ys.var()).item())
    intact = learner(xs, ys)[:, -1]
    assert row["intact"] == pytest.approx(((intact - reference).square().mean() / ys.var()).item())


def test_patterns_of_a_network_whose_heads_are_known():
    network = gradient_descent(2, 6, step_size=0.03, num_steps=1).float()
    table = classify_attention(network, TASK, 5, 8, 0).set_index(["layer", "head", "from_tokens"])
    assert table.loc[(1, 0, "y_tokens"), "pattern"] == "own_x"  # x → its y-token
    assert table.loc[(3, 0, "x_tokens"), "pattern"] == "y_tokens"  # the mean over the examples
    assert table.loc[(3, 0, "x_tokens"), "y_tokens"] == pytest.approx(1)
    shares = table[["itself", "own_x", "x_tokens", "y_tokens"]].sum(axis=1)
    assert (shares - 1).abs().max() < 1e-5


def test_the_answers_that_are_read_are_the_predictors():
    examples = PromptPairs.draw(TASK, 5, 4, 0, "test", torch.float64).recipient
    config = ReadingsConfig(step_size=0.02, gradient_steps=(1, 3), penalties=(0.5,))
    answers = answers_along(examples, config)
    prompt = prompt_of(examples)
    for key, predictor in (
        (("gradient_descent", 1.0), GradientDescent(0.02, 1)),
        (("gradient_descent", 3.0), GradientDescent(0.02, 3)),
        (("ridge", 0.5), Ridge(0.5)),
    ):
        torch.testing.assert_close(answers[key], predictor(*prompt)[:, -1])


def test_constructed_descent_reads_as_its_own_number_of_steps():
    network = gradient_descent(
        2,
        6,
        step_size=0.02,
        num_steps=4,
        constants=FLOAT32.model_copy(update={"padding": 1e4}),
        dtype=torch.float32,
    )
    config = ReadingsConfig(
        num_prompts=1500,
        num_test_prompts=200,
        step_size=0.02,
        gradient_steps=(1, 2, 4, 8),
        penalties=(1.0,),
    )
    table, best = read_queries(network, TASK, 5, config, FEW, 0)
    last = best[(best["layer"] == 8) & (best["family"] == "gradient_descent")]
    assert last["number"].item() == 4
    assert last["error"].item() < 1e-3
    first = table[table["layer"] == 0]
    assert (first["error"] > 0.9).all()  # the query alone knows no answer
    assert isinstance(table, pd.DataFrame)
    assert set(table["layer"]) == set(range(9))
