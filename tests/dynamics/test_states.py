"""Probes and read-outs along training belong to the learner of their own seed and step."""

from dataclasses import replace

import pytest
import torch

from incontext_linear.config import BootstrapConfig, EvaluationConfig
from incontext_linear.dynamics import DynamicsConfig, Trajectories, draw_prompt_sets
from incontext_linear.dynamics.states import measure_states, over_seeds
from incontext_linear.dynamics.trajectories import HOME
from incontext_linear.learner.transformer import as_transformer
from incontext_linear.probing.config import FitConfig
from incontext_linear.probing.fitting import split_prompts
from incontext_linear.probing.layerwise import read_predictions
from tests.dynamics.conftest import TASK

DYNAMICS = DynamicsConfig(
    fit=FitConfig(hidden_units=(), num_steps=20, batch_size=32), num_probe_prompts=160
)


@pytest.mark.slow
def test_states_of_every_step_and_layer(trajectories: Trajectories):
    prompts = draw_prompt_sets(TASK, EvaluationConfig(), 160, 0)[HOME]
    two = replace(trajectories, store=replace(trajectories.store, steps=(0, 3)))
    probes, readouts = measure_states(two, prompts, DYNAMICS, 0, "cpu")
    assert len(readouts) == 2 * 2 * 3
    assert len(probes) == 2 * len(readouts)  # two targets
    assert probes["error"].between(0, 3).all()
    _, (step, learner) = two.learners(3)
    with torch.no_grad():
        states = (
            as_transformer(learner.model).hidden_states(prompts.xs, prompts.ys).permute(0, 2, 1, 3)
        )
    split = split_prompts(160, DYNAMICS.fit, 0)
    read = read_predictions(states, prompts.ys, split)[2, 20:, 1:]
    ys = prompts.ys[split.test]
    expected = (read - ys[20:, 1:]).square().mean() / ys.square().mean()
    own = (readouts["seed"] == 3) & (readouts["step"] == step) & (readouts["layer"] == 2)
    assert readouts[own]["risk"].item() == pytest.approx(expected.item(), rel=1e-3)
    means = over_seeds(readouts, ["step", "layer"], "risk", BootstrapConfig(), 0)
    assert (means["low"] <= means["mean"]).all()
    assert set(means["seeds"]) == {2}
