import copy

import numpy as np
import pandas as pd
import pytest
import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.probing import (
    Column,
    build_targets,
    collect_hidden_states,
    collect_states,
    controls,
    fit_probes,
    fitting,
    select,
    split_prompts,
    target_values,
)
from incontext_linear.probing.config import PROBE_TARGETS, FitConfig, ProbingConfig
from incontext_linear.probing.controls import fit_controls
from incontext_linear.probing.readouts import pack_readouts, unpack_readout
from incontext_linear.probing.selection import identify
from incontext_linear.tasks import draw_prompts, generator

CONFIG = FitConfig(num_steps=300, batch_size=64, hidden_units=(16,), learning_rate=1e-2)


def planted_states():
    """Two layers, five tokens: the first target lies, rotated, in token 2 of layer 1, and nowhere
    else.
    """
    rng = generator(0, "planted")
    targets = torch.randn(2, 600, 3, generator=rng)
    hidden = torch.randn(2, 5, 600, 8, generator=rng)
    rotation = torch.linalg.qr(torch.randn(8, 3, generator=rng))[0]
    hidden[1, 2] = 3 * targets[0] @ rotation.T
    return hidden, [Column("held", 2, targets[0]), Column("absent", 2, targets[1])]


@pytest.fixture(scope="module")
def planted_fit():
    hidden, columns = planted_states()
    return fit_probes(hidden, [0, 1], columns, CONFIG, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("readout", [0, 1], ids=["linear", "mlp"])
def test_probes_find_a_planted_target_in_its_layer_and_position_only(planted_fit, readout):
    error = planted_fit.squared_error[0, :, readout].mean(-1)
    assert error[1, 0] < 0.1
    assert (error[0] > 0.8).all()
    assert error[1, 1] > 0.8
    attention = planted_fit.attention[0, 1, readout, 0]
    assert attention.argmax() == 2
    assert attention[2] > 0.4


def test_the_linear_readout_decodes_in_the_units_of_states_and_targets(planted_fit):
    hidden, columns = planted_states()
    readout = planted_fit.linear["held", 2, 1]
    decoded = readout.decode(hidden[1].transpose(0, 1))
    test = split_prompts(600, CONFIG, 0).test
    missed = (decoded - columns[0].values)[test].square().sum(-1)
    variance = columns[0].values.var(0).sum()
    assert missed.mean() / variance == pytest.approx(
        planted_fit.squared_error[0, 1, 0, 0].mean().item(), rel=0.1
    )


@pytest.mark.slow
def test_probes_of_one_batched_pass_equal_those_trained_alone():
    hidden, columns = planted_states()
    hidden = hidden.double()
    columns = [column._replace(values=column.values.double()) for column in columns]
    columns.append(
        Column("short", 1, torch.randn(600, 5, generator=generator(0, "short")).double())
    )
    config = CONFIG.model_copy(update={"num_steps": 40, "hidden_units": (4, 16), "num_seeds": 2})
    together = fit_probes(hidden, [0, 1], columns, config, seed=1)
    for row in range(2):
        for position, column in enumerate(columns):
            alone = fit_probes(hidden[row : row + 1], [row], [column], config, seed=1)
            expected = together.squared_error[:, row, :, position]
            torch.testing.assert_close(
                alone.squared_error[:, 0, :, 0], expected, rtol=1e-6, atol=1e-8
            )
            torch.testing.assert_close(
                alone.attention[:, 0, :, 0],
                together.attention[:, row, :, position],
                rtol=1e-6,
                atol=1e-8,
            )


@pytest.mark.slow
def test_layers_fitted_by_groups_where_states_are_large_give_the_same_probes(monkeypatch):
    hidden, columns = planted_states()
    config = CONFIG.model_copy(update={"num_steps": 40, "num_seeds": 2})
    together = fit_probes(hidden, [3, 7], columns, config, seed=1)
    monkeypatch.setattr(fitting, "STATES_AT_ONCE", hidden[0].nbytes)
    grouped = fit_probes(hidden, [3, 7], columns, config, seed=1)
    torch.testing.assert_close(grouped.squared_error, together.squared_error)
    torch.testing.assert_close(grouped.attention, together.attention)
    assert grouped.linear.keys() == together.linear.keys()
    for key, readout in together.linear.items():
        torch.testing.assert_close(grouped.linear[key].matrix, readout.matrix, rtol=1e-4, atol=1e-5)


def test_probes_of_fewer_examples_attend_to_their_tokens_only():
    hidden, columns = planted_states()
    config = CONFIG.model_copy(update={"num_steps": 5})
    fit = fit_probes(hidden, [0, 1], [columns[0]._replace(examples_seen=1)], config, seed=0)
    assert (fit.attention[..., 3:] == 0).all()
    torch.testing.assert_close(fit.attention.sum(-1), torch.ones(1, 2, 2, 1))


def test_refits_share_their_test_prompts_and_nothing_else():
    first, second = (split_prompts(100, CONFIG, 0, refit) for refit in range(2))
    assert torch.equal(first.test, second.test)
    assert not torch.equal(first.validation, second.validation)


def test_scores_come_from_prompts_that_fitting_never_saw():
    split = split_prompts(100, CONFIG, seed=0)
    together = torch.cat(split)
    assert sorted(together.tolist()) == list(range(100))
    assert len(split.test) == 25


def test_a_split_with_an_empty_part_is_refused():
    with pytest.raises(ValueError, match="3 probing prompts cannot be split"):
        split_prompts(3, CONFIG, seed=0)


def test_the_same_seed_gives_the_same_scores():
    hidden, columns = planted_states()
    config = CONFIG.model_copy(update={"num_steps": 20, "num_seeds": 2})
    first, second = (fit_probes(hidden, [0, 1], columns, config, seed=3) for _ in range(2))
    assert torch.equal(first.squared_error, second.squared_error)
    assert not torch.equal(first.squared_error[0], first.squared_error[1])


def test_error_tables_name_every_probe(planted_fit):
    table = planted_fit.error_table("learner")
    rows = table.query("target == 'held' and kind == 'mlp' and hidden_units == 16 and layer == 1")
    np.testing.assert_allclose(rows["squared_error"], planted_fit.squared_error[0, 1, 1, 0].numpy())
    assert set(table["source"]) == {"learner"}
    attention = planted_fit.attention_table("learner").query("target == 'held' and layer == 1")
    assert attention.groupby("kind")["attention"].sum().tolist() == pytest.approx([1, 1])


def test_states_are_those_of_the_learner_with_tokens_before_prompts():
    model = Transformer(2, 4, ModelConfig(num_layers=2, num_heads=2, width=8)).initialize(
        generator(0, "m")
    )
    prompts = draw_prompts(TaskConfig(dim=2, num_examples=4), 5, seed=0)
    states = collect_states([model, model], prompts.xs, prompts.ys, [2, 0], prompts_at_once=3)
    expected = model.hidden_states(prompts.xs, prompts.ys).detach()
    for row, layer in enumerate([2, 0, 2, 0]):
        torch.testing.assert_close(states[row].transpose(0, 1), expected[layer])


def test_prompts_no_longer_than_what_is_probed_give_the_same_states():
    task = TaskConfig(dim=2, num_examples=9)
    model = Transformer(2, 9, ModelConfig(num_layers=2, num_heads=2, width=8))
    learner = Learner(model.initialize(generator(0, "states")), task)
    prompts = draw_prompts(task, 5, seed=0)._asdict()
    fit = FitConfig(test_fraction=0.4, validation_fraction=0.2)
    short, whole = (
        collect_hidden_states(
            learner,
            select(learner, prompts, ProbingConfig(context_lengths=lengths, fit=fit), "cpu", 0),
        )
        for lengths in ((2, 4), (2, 4, None))
    )
    assert (short.shape[1], whole.shape[1]) == (
        2 * 4 + 1,
        2 * 9 - 1,
    )  # the query's token comes last
    torch.testing.assert_close(short, whole[:, : 2 * 4 + 1])


@pytest.fixture(scope="module")
def learner():
    model = Transformer(2, 6, ModelConfig(num_layers=2, num_heads=2, width=8))
    return Learner(model.initialize(generator(0, "m")), TaskConfig(dim=2, num_examples=6))


@pytest.fixture(scope="module")
def drawn():
    return draw_prompts(TaskConfig(dim=2, num_examples=6), 40, seed=0)._asdict()


def test_a_selection_holds_every_target_at_every_number_of_examples_computed_once(learner, drawn):
    config = ProbingConfig(context_lengths=(3, None), layers=(0, 2), num_prompts=30)
    selection = select(learner, drawn, config, "cpu", seed=0)
    assert [column[:2] for column in selection.columns] == [
        (name, seen) for seen in (3, 5) for name in config.targets
    ]
    assert selection.layers == [0, 2]
    assert sum(map(len, selection.split)) == len(selection.xs) == 30
    expected = target_values(
        "m",
        build_targets(["moment"], 1.0)["moment"],
        *(drawn[name][:30, :3] for name in ("xs", "ys")),
    )
    torch.testing.assert_close(selection.columns[0].values, expected)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ProbingConfig(layers=(3,)), r"probing\.layers=\[3\].* has 2 layers; allowed: 0 to 2"),
        (
            ProbingConfig(context_lengths=(6,)),
            r"context_lengths=\[6\].*6 examples; allowed: 1 to 5",
        ),
    ],
)
def test_what_the_learner_or_the_prompts_lack_is_refused(learner, drawn, config, says):
    with pytest.raises(ValueError, match=says):
        select(learner, drawn, config, "cpu", seed=0)


def test_a_selection_is_told_from_one_with_a_single_other_number_or_sign(learner, drawn):
    def of(xs):
        return identify(learner, select(learner, drawn | {"xs": xs}, ProbingConfig(), "cpu", 0))

    own = of(drawn["xs"])
    assert torch.equal(own, of(drawn["xs"].clone()))
    assert not torch.equal(own, of(-drawn["xs"]))
    assert not torch.equal(own, of(drawn["xs"].roll(1, 0)))
    other = Learner(copy.deepcopy(learner.model), learner.task)
    with torch.no_grad():
        other.model.read_out.weight.neg_()
    selection = select(learner, drawn, ProbingConfig(), "cpu", 0)
    assert not torch.equal(own, identify(other, selection))


def test_read_outs_are_the_same_after_packing(planted_fit):
    packed = pack_readouts(planted_fit.linear)
    readout, own = unpack_readout(packed, "held", 2, 1), planted_fit.linear["held", 2, 1]
    torch.testing.assert_close(readout.matrix, own.matrix)
    torch.testing.assert_close(readout.attention, own.attention[:5])
    assert readout.r_squared == pytest.approx(own.r_squared)
    assert own.r_squared == pytest.approx(
        1 - planted_fit.squared_error[0, 1, 0, 0].mean().item(), abs=1e-6
    )
    with pytest.raises(ValueError, match=r"no saved probe of 'held' after 2 examples in layer 7"):
        unpack_readout(packed, "held", 2, 7)


def test_targets_agree_with_numpy():
    prompts = draw_prompts(TaskConfig(dim=3, num_examples=7, noise_std=0.2), 5, seed=0)
    targets = build_targets(PROBE_TARGETS, ridge_penalty=0.5)
    found = {name: target(prompts.xs, prompts.ys).numpy() for name, target in targets.items()}
    for b in range(5):
        xs, ys = prompts.xs[b].double().numpy(), prompts.ys[b].double().numpy()
        assert np.allclose(found["moment"][b], xs.T @ ys, atol=1e-4)
        assert np.allclose(
            found["least_squares"][b], np.linalg.lstsq(xs, ys, rcond=None)[0], atol=1e-5
        )
        ridge = np.linalg.solve(xs.T @ xs + 0.5 * np.eye(3), xs.T @ ys)
        assert np.allclose(found["ridge"][b], ridge, atol=1e-5)
        assert np.allclose(found["gram"][b], (xs.T @ xs)[np.triu_indices(3)], atol=1e-4)


def first_label(xs, ys):
    return ys[:, :1]


def constant(xs, ys):
    return torch.ones(len(xs), 2)


def wrong_shape(xs, ys):
    return ys[0]


def test_a_target_of_ones_own_is_named_by_its_dotted_path():
    name = f"{__name__}.first_label"
    targets = build_targets(["moment", name], ridge_penalty=1.0)
    xs, ys = torch.randn(4, 3, 2), torch.randn(4, 3)
    assert torch.equal(target_values(name, targets[name], xs, ys), ys[:, :1])


def test_a_target_that_cannot_be_imported_is_refused():
    with pytest.raises(ValueError, match=r"cannot import the target 'no\.such\.target'"):
        build_targets(["no.such.target"], ridge_penalty=1.0)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (constant, "the same for every prompt"),
        (wrong_shape, r"gave \(3,\); allowed: one vector a prompt"),
    ],
)
def test_a_target_with_nothing_to_read_is_refused(target, says):
    with pytest.raises(ValueError, match=says):
        target_values("mine", target, torch.randn(4, 3, 2), torch.randn(4, 3))


def test_controls_fitted_one_after_the_other_are_those_of_one_pass(learner, drawn, monkeypatch):
    fit = FitConfig(num_steps=20, hidden_units=(4,), num_seeds=1)
    probing = ProbingConfig(fit=fit)
    selection = select(learner, drawn, probing, "cpu", seed=0)
    control = Learner(copy.deepcopy(learner.model), learner.task)
    given = control, learner.task, learner.config, selection, probing, 0
    together = fit_controls(*given)
    monkeypatch.setattr(controls, "STATES_AT_ONCE", 1)
    apart = fit_controls(*given)
    keys = [name for name in together.columns if name != "squared_error"]
    pd.testing.assert_frame_equal(apart[keys], together[keys])
    np.testing.assert_allclose(apart["squared_error"], together["squared_error"], rtol=1e-4)
