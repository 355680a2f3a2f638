"""The code of the tutorial on a network of one's own, block after block, on fewer prompts."""

import re
from pathlib import Path

import pytest
import torch

from incontext_linear.comparison.identification import IdentificationConfig
from incontext_linear.learner.base import can_be_used, check_learner

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "your-own-network.md"
FEW = IdentificationConfig(
    shifts={"input_scale": (3.0,)},
    num_calibration_prompts=16,
    num_prompts=32,
    num_confirmation_prompts=32,
    num_adversarial_pairs=0,
)
FEWER_STEPS = ("num_steps = MyNetwork(), 1500", "num_steps = MyNetwork(), 30")
FEWER_PROMPTS = (
    'compare(network, {"dim": 2, "num_examples": 6})',
    'compare(network, {"dim": 2, "num_examples": 6}, identification=FEW, num_prompts=32, '
    "num_weight_prompts=4)",
)


@pytest.mark.slow
def test_the_tutorials_code_takes_a_network_from_file_to_verdict(tmp_path: Path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    network, train, compare, layered, walk = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert FEWER_STEPS[0] in train
    assert FEWER_PROMPTS[0] in compare
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "network.py").write_text(network + layered, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict = {"FEW": FEW}
    with torch.random.fork_rng():
        exec(train.replace(*FEWER_STEPS), names)
    assert (tmp_path / "my.safetensors").is_file()
    exec(compare.replace(*FEWER_PROMPTS), names)
    assert names["answer"].verdict.startswith("After 4 examples (k = 2d)")
    with pytest.raises(ValueError, match="MyNetwork cannot be used for probing") as error:
        check_learner(names["network"], "probing")
    assert str(error.value) in " ".join(text.split())  # the page quotes the message
    exec(walk, names)
    assert names["layer"] == 2
    assert can_be_used(names["layered"], "interventions")
