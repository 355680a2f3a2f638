import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.probing import LinearReadout
from incontext_linear.probing.interventions import (
    Movements,
    attended_positions,
    intervene,
    minimal_edit,
    movement_table,
    pair_prompts,
    pattern_edit,
    predict_from,
    random_edit,
)
from incontext_linear.tasks import draw_prompts, generator

K, DIM, WIDTH = 4, 2, 12


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(TaskConfig(dim=DIM, num_examples=6), 64, seed=0)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(num_layers=3, num_heads=2, width=WIDTH)
    return Transformer(DIM, 6, config).initialize(generator(0, "model"))


def some_readout(num_tokens=2 * K + 1, seed=0):
    rng = generator(seed, "readout")
    attention = torch.randn(num_tokens, generator=rng).softmax(0)
    return LinearReadout(attention, torch.randn(WIDTH, DIM, generator=rng), torch.zeros(DIM))


class HoldsWeights(Transformer):
    """A learner that holds w in token 1, dimensions 2 and 3, and reads it from there in its only
    layer.
    """

    def __init__(self):
        super().__init__(DIM, 6, ModelConfig(num_layers=2, num_heads=2, width=WIDTH))
        self.blocks = nn.ModuleList([nn.Identity(), self.Read()])

    class Read(nn.Module):
        def forward(self, hidden):
            prediction = (hidden[:, 1, 2:4] * hidden[:, -1, :2]).sum(-1)
            read = hidden.clone()
            read[:, -1, 4] = prediction
            return read

    def embed(self, xs, ys):
        hidden = torch.zeros(len(xs), 2 * xs.shape[1] - 1, WIDTH)
        hidden[:, ::2, :2] = xs
        hidden[:, 1, 2:4] = torch.linalg.lstsq(xs[:, :K], ys[:, :K, None]).solution.squeeze(-1)
        return hidden

    def predict(self, hidden):
        return hidden[:, ::2, 4]


def others():
    drawn = draw_prompts(TaskConfig(dim=DIM, num_examples=6), 64, seed=1)
    return drawn.xs[:, : K + 1], drawn.ys[:, : K + 1]


def weights_readout():
    matrix = torch.zeros(WIDTH, DIM)
    matrix[2, 0] = matrix[3, 1] = 1.0
    attention = torch.zeros(2 * K + 1).scatter(0, torch.tensor(1), 1.0)
    return LinearReadout(attention, matrix, torch.zeros(DIM))


@pytest.fixture(scope="module")
def toy(prompts):
    readouts = {"weights": dict.fromkeys(range(3), weights_readout())}
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    return intervene(HoldsWeights(), pairs, others(), readouts, range(3), generator(0, "r"))


def test_an_edit_of_what_is_held_and_read_gives_exactly_the_donors_prediction(toy):
    assert (toy.recipient - toy.donor).abs().mean() > 0.5
    torch.testing.assert_close(toy.edited["minimal_edit", "weights", 1], toy.donor)
    torch.testing.assert_close(toy.edited["minimal_edit", "weights", 0], toy.donor)


def test_an_edit_behind_the_layer_that_reads_changes_nothing(toy):
    torch.testing.assert_close(toy.edited["minimal_edit", "weights", 2], toy.recipient)


def test_a_random_direction_of_the_same_norm_does_not_move_the_prediction_to_the_donors(toy):
    table = movement_table(toy, 0.95, 200, seed=0).set_index(["method", "layer"])
    assert table.loc[("minimal_edit", 1), "fraction"] == pytest.approx(1)
    assert table.loc[("minimal_edit", 1), "distance"] == pytest.approx(0, abs=1e-9)
    assert abs(table.loc[("minimal_edit_random", 1), "fraction"]) < 0.35
    assert table.loc[("minimal_edit_random", 1), "distance"] > 0.5
    norms = table["norm"].unstack("layer")
    np.testing.assert_allclose(
        norms.loc["minimal_edit"], norms.loc["minimal_edit_random"], rtol=1e-5
    )
    assert 0 < norms.loc["minimal_edit", 1] < 1
    assert (table["low"] <= table["fraction"] + 1e-12).all()


def test_the_donor_is_the_next_prompt_with_the_recipients_query(prompts):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    assert torch.equal(pairs.donor[0][0, :K], prompts.xs[1, :K])
    assert torch.equal(pairs.donor[1][-1, :K], prompts.ys[0, :K])
    assert torch.equal(pairs.donor[0][:, K], prompts.xs[:, K])


def test_a_donors_prediction_is_the_learners_own_behind_the_donors_examples(model, prompts):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(model, pairs, others(), {}, [0], generator(0, "r"))
    torch.testing.assert_close(moved.recipient, model(prompts.xs, prompts.ys)[:, K].detach())
    torch.testing.assert_close(moved.donor, model(*pairs.donor)[:, K].detach())


def test_interchange_of_all_positions_at_layer_0_gives_exactly_the_donors_prediction(
    model, prompts
):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(model, pairs, others(), {}, [0, 3], generator(0, "r"))
    assert torch.equal(moved.edited["interchange_context", "all", 0], moved.donor)


def test_interchange_of_the_context_behind_the_last_layer_changes_nothing(model, prompts):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(model, pairs, others(), {}, [0, 3], generator(0, "r"))
    assert torch.equal(moved.edited["interchange_context", "all", 3], moved.recipient)


def test_an_edit_changes_what_is_decoded_by_exactly_what_is_asked():
    readout, change = some_readout(), torch.randn(5, DIM, generator=generator(0, "change"))
    hidden = torch.randn(5, 2 * K + 1, WIDTH, generator=generator(0, "hidden"))
    decoded = readout.decode(hidden + minimal_edit(readout, change)) - readout.decode(hidden)
    torch.testing.assert_close(decoded, change, rtol=1e-4, atol=1e-5)


def test_an_edit_lies_in_the_space_of_the_read_out_and_no_other_edit_is_smaller():
    readout, change = some_readout(), torch.randn(5, DIM, generator=generator(0, "change"))
    edit = minimal_edit(readout, change)
    whole = torch.einsum("t,hd->thd", readout.attention, readout.matrix).flatten(0, 1)  # (T·H, D)
    minimal = change @ torch.linalg.pinv(whole)
    torch.testing.assert_close(edit.flatten(1), minimal, rtol=1e-4, atol=1e-5)
    inside = whole @ torch.linalg.pinv(whole)
    torch.testing.assert_close(edit.flatten(1) @ inside, edit.flatten(1), rtol=1e-4, atol=1e-5)


def test_a_pattern_edit_changes_what_is_decoded_by_exactly_what_is_asked():
    readout, change = some_readout(), torch.randn(50, DIM, generator=generator(0, "change"))
    hidden = torch.randn(50, 2 * K + 1, WIDTH, generator=generator(0, "hidden"))
    edited = hidden + pattern_edit(hidden, readout, change)
    torch.testing.assert_close(
        readout.decode(edited) - readout.decode(hidden), change, rtol=1e-3, atol=1e-3
    )


def test_a_pattern_edit_reaches_a_copy_that_the_probe_does_not_look_at():
    readout = weights_readout()
    hidden = torch.randn(500, 2 * K + 1, WIDTH, generator=generator(0, "hidden"))
    hidden[:, 5, 7:9] = 2 * hidden[:, 1, 2:4]
    change = torch.ones(500, DIM)
    pattern, minimal = pattern_edit(hidden, readout, change), minimal_edit(readout, change)
    torch.testing.assert_close(pattern[:, 5, 7:9], 2 * change)
    assert (minimal[:, 5] == 0).all()


def test_a_pattern_of_other_prompts_has_no_part_of_the_pairs_own_difference():
    hidden = torch.randn(2, 40, 2 * K + 1, WIDTH, generator=generator(0, "hidden"))
    recipient, donor = hidden[0], hidden[0].roll(-1, 0)
    readout, difference = some_readout(), donor - recipient
    change = readout.decode(donor) - readout.decode(recipient)

    def share(states):
        edit = pattern_edit(states, readout, change)
        return ((edit * difference).sum() / difference.square().sum()).item()

    assert (
        share(hidden[0]) > DIM / 40
    )  # as it would be if the pattern were estimated on the pairs themselves
    assert abs(share(hidden[1])) < 0.4 * DIM / 40


def test_random_directions_have_the_edits_norm_at_every_position():
    edit = minimal_edit(some_readout(), torch.randn(5, DIM, generator=generator(0, "change")))
    control = random_edit(edit, generator(0, "r"))
    torch.testing.assert_close(control.norm(dim=-1), edit.norm(dim=-1))
    cosine = torch.cosine_similarity(control.flatten(1), edit.flatten(1))
    assert cosine.abs().mean() < 0.6


def test_attended_positions_are_the_fewest_that_hold_the_share():
    chosen = attended_positions(torch.tensor([0.05, 0.6, 0.05, 0.3]), share=0.85)
    assert chosen.tolist() == [False, True, False, True]
    assert attended_positions(torch.tensor([0.2, 0.8]), share=0.8).tolist() == [False, True]


def test_the_querys_own_token_is_not_exchanged_even_if_the_probe_looks_at_nothing_else(
    model, prompts
):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    scores = torch.full((2 * K + 1,), -20.0).index_fill(0, torch.tensor([2 * K]), 20.0)
    at_query = dataclasses.replace(some_readout(), attention=scores.softmax(0))
    moved = intervene(
        model, pairs, others(), {"least_squares": {3: at_query}}, [3], generator(0, "r")
    )
    torch.testing.assert_close(
        moved.edited["interchange_attended", "least_squares", 3], moved.recipient
    )
    assert moved.norms["interchange_attended", "least_squares", 3] > 0


def test_predictions_from_any_layer_on_are_the_learners(model, prompts):
    states = model.hidden_states(prompts.xs, prompts.ys)
    for layer in range(4):
        found = predict_from(model, states[layer], layer)
        torch.testing.assert_close(found, model(prompts.xs, prompts.ys)[:, -1])


def test_fraction_and_distance_measure_the_way_to_the_donor():
    start, goal = torch.zeros(50), torch.linspace(1, 2, 50)
    edited = {("edit", "t", 0): goal / 2, ("edit", "t", 1): goal, ("edit", "t", 2): start}
    moved = Movements(start, goal, edited, dict.fromkeys(edited, 1.0))
    table = movement_table(moved, 0.9, 50, seed=0)
    np.testing.assert_allclose(table["fraction"], [0.5, 1, 0])
    np.testing.assert_allclose(table["distance"], [0.25, 0, 1])
