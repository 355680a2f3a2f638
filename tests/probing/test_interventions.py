import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from incontext_linear.config import BootstrapConfig, ModelConfig, TaskConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.probing import Intervention, LayerStates, LinearReadout
from incontext_linear.probing.config import InterventionsConfig
from incontext_linear.probing.interventions import (
    InterchangeAttended,
    MinimalEdit,
    Movements,
    PatternEdit,
    RandomDirection,
    attended_positions,
    build_interventions,
    intervene,
    movement_table,
    pair_prompts,
)
from incontext_linear.tasks import draw_prompts, generator

K, DIM, WIDTH = 4, 2, 12
METHODS = build_interventions(InterventionsConfig().methods)


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

    def read(self, hidden):
        return hidden[..., 4]


def at_layer(hidden, donor, readout, others=None):
    """What an intervention is given, with the pairs themselves as other prompts if none are."""
    others = hidden if others is None else others
    return LayerStates(hidden, donor, others, readout, generator(0, "r"))


def donors_that_change(readout, change, seed=0):
    """Recipients' states, and donors of which the read-out reads ``change`` more."""
    shape = len(change), 2 * K + 1, WIDTH
    hidden = torch.randn(shape, generator=generator(seed, "hidden"))
    direction = change @ torch.linalg.pinv(readout.matrix)
    return hidden, hidden + direction[:, None]  # attention sums to one


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
    return intervene(
        HoldsWeights(), pairs, others(), METHODS, readouts, range(3), generator(0, "r")
    )


def test_an_edit_of_what_is_held_and_read_gives_exactly_the_donors_prediction(toy):
    assert (toy.recipient - toy.donor).abs().mean() > 0.5
    for layer in (0, 1):
        torch.testing.assert_close(toy.edited["minimal_edit", "weights", layer], toy.donor)


def test_an_edit_behind_the_layer_that_reads_changes_nothing(toy):
    torch.testing.assert_close(toy.edited["minimal_edit", "weights", 2], toy.recipient)


def test_a_random_direction_of_the_same_norm_does_not_move_the_prediction_to_the_donors(toy):
    table = movement_table(toy, BootstrapConfig(num_resamples=200), seed=0).set_index(
        ["method", "layer"]
    )
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


def test_donors_are_the_other_half_of_the_prompts_with_the_recipients_query(prompts):
    pairs = pair_prompts(prompts.xs[:63], prompts.ys[:63], K)
    assert torch.equal(pairs.recipient[0], prompts.xs[:31, : K + 1])
    assert torch.equal(pairs.donor[0][:, :K], prompts.xs[31:62, :K])
    assert torch.equal(pairs.donor[1][:, :K], prompts.ys[31:62, :K])
    assert torch.equal(pairs.donor[0][:, K], prompts.xs[:31, K])


def test_a_single_prompt_makes_no_pair(prompts):
    with pytest.raises(ValueError, match=r"1 test prompts give no pair.*at least 2"):
        pair_prompts(prompts.xs[:1], prompts.ys[:1], K)


def test_a_donors_prediction_is_the_learners_own_behind_the_donors_examples(model, prompts):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(model, pairs, others(), METHODS, {}, [0], generator(0, "r"))
    torch.testing.assert_close(moved.recipient, model(*pairs.recipient)[:, K].detach())
    torch.testing.assert_close(moved.donor, model(*pairs.donor)[:, K].detach())


def test_interchange_of_all_positions_at_layer_0_gives_exactly_the_donors_prediction(
    model, prompts
):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(model, pairs, others(), METHODS, {}, [0, 3], generator(0, "r"))
    assert torch.equal(moved.edited["interchange_context", "all", 0], moved.donor)


def test_interchange_of_the_context_behind_the_last_layer_changes_nothing(model, prompts):
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(model, pairs, others(), METHODS, {}, [0, 3], generator(0, "r"))
    assert torch.equal(moved.edited["interchange_context", "all", 3], moved.recipient)


@pytest.mark.parametrize("method", [MinimalEdit(), PatternEdit()])
def test_an_edit_changes_what_is_decoded_by_exactly_what_is_asked(method):
    readout, change = some_readout(), torch.randn(50, DIM, generator=generator(0, "change"))
    hidden, donor = donors_that_change(readout, change)
    edited = method(at_layer(hidden, donor, readout))
    decoded = readout.decode(edited) - readout.decode(hidden)
    torch.testing.assert_close(decoded, change, rtol=1e-3, atol=1e-3)


def test_an_edit_lies_in_the_space_of_the_read_out_and_no_other_edit_is_smaller():
    readout, change = some_readout(), torch.randn(5, DIM, generator=generator(0, "change"))
    hidden, donor = donors_that_change(readout, change)
    edit = (MinimalEdit()(at_layer(hidden, donor, readout)) - hidden).flatten(1)
    whole = torch.einsum("t,hd->thd", readout.attention, readout.matrix).flatten(0, 1)  # (T·H, D)
    minimal = change @ torch.linalg.pinv(whole)
    torch.testing.assert_close(edit, minimal, rtol=1e-4, atol=1e-5)
    inside = whole @ torch.linalg.pinv(whole)
    torch.testing.assert_close(edit @ inside, edit, rtol=1e-4, atol=1e-5)


def test_a_pattern_edit_reaches_a_copy_that_the_probe_does_not_look_at():
    readout, change = weights_readout(), torch.ones(500, DIM)
    hidden, donor = donors_that_change(readout, change)
    hidden[:, 5, 7:9] = 2 * hidden[:, 1, 2:4]
    given = at_layer(hidden, donor, readout)
    pattern, minimal = (method(given) - hidden for method in (PatternEdit(), MinimalEdit()))
    torch.testing.assert_close(pattern[:, 5, 7:9], 2 * change, rtol=1e-4, atol=1e-4)
    assert (minimal[:, 5] == 0).all()


def test_a_pattern_of_other_prompts_has_no_part_of_the_pairs_own_difference():
    hidden = torch.randn(2, 40, 2 * K + 1, WIDTH, generator=generator(0, "hidden"))
    recipient, donor = hidden[0], hidden[0].roll(-1, 0)
    readout, difference = some_readout(), donor - recipient

    def share(states):
        edit = PatternEdit()(at_layer(recipient, donor, readout, states)) - recipient
        return ((edit * difference).sum() / difference.square().sum()).item()

    # As it would be if the pattern were estimated on the pairs themselves.
    assert share(hidden[0]) > DIM / 40
    assert abs(share(hidden[1])) < 0.4 * DIM / 40


def test_random_directions_have_the_edits_norm_at_every_position():
    readout, change = some_readout(), torch.randn(5, DIM, generator=generator(0, "change"))
    hidden, donor = donors_that_change(readout, change)
    given = at_layer(hidden, donor, readout)
    edit = MinimalEdit()(given) - hidden
    control = RandomDirection(MinimalEdit())(given) - hidden
    torch.testing.assert_close(control.norm(dim=-1), edit.norm(dim=-1), rtol=1e-3, atol=1e-5)
    assert torch.cosine_similarity(control.flatten(1), edit.flatten(1)).abs().mean() < 0.6


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
    readouts = {"least_squares": {3: at_query}}
    moved = intervene(model, pairs, others(), METHODS, readouts, [3], generator(0, "r"))
    torch.testing.assert_close(
        moved.edited["interchange_attended", "least_squares", 3], moved.recipient
    )
    assert moved.norms["interchange_attended", "least_squares", 3] > 0


def test_a_wider_share_of_the_attention_exchanges_more_positions():
    hidden, donor = torch.zeros(3, 5, WIDTH), torch.ones(3, 5, WIDTH)
    attention = torch.tensor([0.5, 0.3, 0.1, 0.0, 0.1])
    readout = LinearReadout(attention, torch.randn(WIDTH, DIM), torch.zeros(DIM))
    given = at_layer(hidden, donor, readout)
    exchanged = [InterchangeAttended(share)(given)[0, :, 0].tolist() for share in (0.5, 0.85)]
    assert exchanged == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]


def test_the_ceiling_is_the_probes_share_of_what_exchanging_the_context_moves(prompts):
    """The toy learner's context is exchanged for all of its answer before the layer that reads."""
    readout = dataclasses.replace(weights_readout(), r_squared=0.25)
    without = dataclasses.replace(weights_readout(), r_squared=-0.5)
    readouts = {"some": dict.fromkeys(range(3), readout), "none": dict.fromkeys(range(3), without)}
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(
        HoldsWeights(), pairs, others(), METHODS, readouts, range(3), generator(0, "r")
    )
    ceilings = {name: value for name, value in moved.ceilings.items() if name[0] == "pattern_edit"}
    assert ceilings == pytest.approx(
        {
            ("pattern_edit", t, layer): c * (layer < 2)
            for t, c in (("some", 0.25), ("none", 0.0))
            for layer in range(3)
        },
        abs=1e-6,  # what rounding leaves of a difference of answers
    )
    assert moved.ceilings["interchange_attended", "some", 1] == pytest.approx(1.0)
    assert np.isnan(moved.ceilings["pattern_edit_random", "some", 1])


class HalfWay(Intervention):
    """Of one's own: half of the way to the donor's states, everywhere."""

    follows_probe = False

    def __call__(self, states):
        return (states.recipient + states.donor) / 2


class NoIntervention:
    pass


def test_an_intervention_of_ones_own_is_named_by_its_dotted_path(model, prompts):
    name = f"{__name__}.HalfWay"
    methods = build_interventions([name, f"{name}_random"])
    pairs = pair_prompts(prompts.xs, prompts.ys, K)
    moved = intervene(model, pairs, others(), methods, {}, [1], generator(0, "r"))
    assert set(moved.edited) == {(name, "all", 1), (f"{name}_random", "all", 1)}
    assert moved.norms[name, "all", 1] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no.such.Edit", r"cannot import or make the intervention 'no\.such\.Edit'"),
        (f"{__name__}.NoIntervention", r"is not an intervention; allowed: a subclass of"),
    ],
)
def test_what_is_no_intervention_is_refused(name, says):
    with pytest.raises(ValueError, match=says):
        build_interventions([name])


def test_fraction_and_distance_measure_the_way_to_the_donor():
    start, goal = torch.zeros(50), torch.linspace(1, 2, 50)
    edited = {("edit", "t", 0): goal / 2, ("edit", "t", 1): goal, ("edit", "t", 2): start}
    moved = Movements(start, goal, edited, *2 * [dict.fromkeys(edited, 1.0)])
    table = movement_table(moved, BootstrapConfig(confidence=0.9, num_resamples=50), seed=0)
    np.testing.assert_allclose(table["fraction"], [0.5, 1, 0])
    np.testing.assert_allclose(table["distance"], [0.25, 0, 1])
