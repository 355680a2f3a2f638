import pytest
from pydantic import ValidationError

from incontext_linear.config import ModelConfig, TaskConfig, flatten
from incontext_linear.training.config import TrainingConfig


def test_configs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TaskConfig().dim = 3


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="dimension"):
        TaskConfig(dimension=3)


@pytest.mark.parametrize("dim", [0, -3, 2.5, "many", None])
def test_dimension_is_a_positive_integer(dim):
    with pytest.raises(ValidationError, match="dim"):
        TaskConfig(dim=dim)


def test_heads_must_divide_the_width_and_the_message_lists_what_does():
    with pytest.raises(ValidationError, match=r"num_heads=5 .* width=12; .*: 1, 2, 3, 4, 6, 12"):
        ModelConfig(width=12, num_heads=5)


def test_mixture_strings_parse_to_components():
    task = TaskConfig(weights="normal*2+0.5, uniform*2+-1, normal")
    kinds = [(c.kind, c.scale, c.shift) for c in task.weights]
    assert kinds == [("normal", 2.0, 0.5), ("uniform", 2.0, -1.0), ("normal", 1.0, 0.0)]


@pytest.mark.parametrize(
    "text", ["gauss*1+0", "normal*-1+0", "normal*x", "", "normal**2", "nor mal", "normal*1+2+3"]
)
def test_unreadable_distributions_are_refused(text):
    with pytest.raises(ValidationError):
        TaskConfig(inputs=text)


def test_prior_std_is_the_root_mean_square_of_the_prior():
    assert TaskConfig(weights="normal*3+4").prior_std == pytest.approx(5.0)
    assert TaskConfig(weights="uniform*2+-1").prior_std == pytest.approx(3**-0.5)


def test_fields_flatten_to_dotted_names():
    assert flatten({"a": {"b": 1}, "c": 2}, "p") == {"p.a.b": 1, "p.c": 2}
    assert TaskConfig(dim=5).flat("task")["task.dim"] == 5


def test_a_config_survives_its_own_json():
    task = TaskConfig(weights="normal*2+1,uniform", noise_std=0.5)
    assert TaskConfig.model_validate(task.model_dump(mode="json")) == task


@pytest.mark.parametrize(
    ("text", "scale", "shift"),
    [
        ("normal*1e-3+-2.5E+1", 1e-3, -25.0),
        ("normal+1e+2", 1.0, 100.0),
        (" uniform * .5 + 1. ", 0.5, 1.0),
        ("normal*1e+2", 100.0, 0.0),
    ],
)
def test_numbers_in_distributions_may_be_written_as_usual(text, scale, shift):
    (component,) = TaskConfig(inputs=text).inputs
    assert (component.scale, component.shift) == (scale, shift)


@pytest.mark.parametrize("field", ["dim", "noise_std", "pool_size"])
def test_booleans_are_no_numbers(field):
    with pytest.raises(ValidationError, match=r"Input should be a valid (integer|number)"):
        TaskConfig(**{field: True})


def test_booleans_are_taken_where_they_are_meant():
    assert TrainingConfig(compile=False).compile is False
