"""Heads with planted attention get the score of what was planted."""

import pytest
import torch

from incontext_linear.dynamics import Trajectories
from incontext_linear.dynamics.heads import (
    KINDS,
    LABEL_TO_INPUT,
    MATCHING,
    QUERY_TO_INPUTS,
    QUERY_TO_LABELS,
    appearances,
    head_scores,
    head_table,
    strongest_heads,
)
from incontext_linear.learner.transformer import Transformer
from tests.dynamics.conftest import MODEL, TASK

TOKENS = 2 * TASK.num_examples - 1


class PlantedAttention(Transformer):
    """Three heads: even attention, y_i at x_i, and the query at earlier labels like its own x."""

    def attention_weights(self, xs, ys):
        even = torch.ones(TOKENS, TOKENS).tril()
        own = torch.eye(TOKENS)
        own[1::2] = torch.eye(TOKENS)[::2][:-1]
        likeness = (xs @ xs.mT).square()
        match = torch.zeros(len(xs), TOKENS, TOKENS)
        match[:, 2::2, 1::2] = likeness[:, 1:, :-1].tril()
        match[:, 0, 0] = 1
        match[:, 1::2] = own[1::2]
        match = match / match.sum(-1, keepdim=True)
        even = (even / even.sum(-1, keepdim=True)).expand_as(match)
        heads = torch.stack([even, own.expand_as(match), match], dim=1)
        return heads[None]


@pytest.fixture(scope="module")
def scores():
    model = PlantedAttention(TASK.dim, TASK.num_examples, MODEL)
    rng = torch.Generator().manual_seed(0)
    xs = torch.randn(40, TASK.num_examples, TASK.dim, generator=rng)
    return {name: values[0] for name, values in head_scores(model, xs, xs[..., 0], 16).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_even_attention_scores_nothing(scores, kind):
    assert scores[kind][0] == pytest.approx(0, abs=1e-6)


def test_a_head_that_looks_back_scores_one(scores):
    assert scores[LABEL_TO_INPUT][1] == pytest.approx(1)
    assert scores[QUERY_TO_LABELS][2] == pytest.approx(1, abs=1e-6)
    assert scores[QUERY_TO_INPUTS][2] < 0
    assert scores[QUERY_TO_LABELS][1] < 0


def test_attention_by_likeness_matches_and_even_attention_does_not(scores):
    assert scores[MATCHING][2] == pytest.approx(1, abs=1e-6)
    assert scores[MATCHING][0] == pytest.approx(0, abs=1e-6)


def test_a_head_has_appeared_once_it_stays_above_the_bar(trajectories: Trajectories):
    xs = torch.randn(8, TASK.num_examples, TASK.dim)
    table = head_table(trajectories, xs, xs[..., 0], "cpu")
    layers, heads = MODEL.num_layers, MODEL.num_heads
    assert len(table) == 2 * len(trajectories.steps) * (len(KINDS) + 1) * layers * heads
    one = (table["kind"] == LABEL_TO_INPUT) & (table["layer"] == 2) & (table["head"] == 1)
    rising = table.assign(score=0.0).astype({"score": float})
    rising.loc[one & (table["seed"] == 3), "score"] = [0.9, 0.1, 0.6, 0.7]
    found = appearances(strongest_heads(rising), 0.5).set_index(["kind", "seed"])
    assert found.loc[(LABEL_TO_INPUT, 3), "step"] == trajectories.steps[2]
    assert found.loc[(LABEL_TO_INPUT, 3), "layer"] == 2
    assert found["step"].isna().sum() == 2 * len(KINDS) - 1
