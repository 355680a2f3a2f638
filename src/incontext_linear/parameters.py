"""The whole parameter tree as one schema, with the checks that span several of its branches.

`check_parameters` is what stands between a parameter file, or ``--params``, and a run: its errors
name the parameter by its dotted name, what was given, and what is allowed.
"""

import json
import posixpath
import re
from typing import Any, get_args

from pydantic import BaseModel, NonNegativeInt, SerializeAsAny, ValidationError

from incontext_linear.comparison.config import ComparisonConfig
from incontext_linear.comparison.families import build_families
from incontext_linear.comparison.identification import IdentificationConfig
from incontext_linear.comparison.shifts import build_shifts
from incontext_linear.config import (
    MOST,
    Config,
    DataGenerationConfig,
    Device,
    EvaluationConfig,
    LearnerConfig,
    TaskConfig,
    explain,
)
from incontext_linear.construction.config import ConstructionConfig
from incontext_linear.dynamics.behaviour import DISCRETE
from incontext_linear.dynamics.config import DynamicsConfig
from incontext_linear.dynamics.fitted import training_families
from incontext_linear.learner.sources import LearnerSource
from incontext_linear.phase_diagram.across_seeds.config import AcrossSeedsConfig
from incontext_linear.phase_diagram.config import DiversityConfig, PhaseDiagramConfig
from incontext_linear.predictors import Baselines
from incontext_linear.probing.alignment_config import AlignmentConfig
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.interventions import build_interventions
from incontext_linear.probing.targets import build_targets
from incontext_linear.tables import LEARNER
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.recipe import Recipe


class ParameterError(ValueError):
    """One or more parameters are unknown, of the wrong type, or out of range."""


LONGEST_NAME = 200
"""Of a baseline; MLflow's metrics, which have it at their end, have at most 250 letters."""

AxisValue = bool | int | float | str | None
"""What a parameter may be along an axis of a sweep."""


def show(value: AxisValue) -> str:
    """A value as it appears in names and tags: ``null``, ``true``, ``0.25``, ``adamw``."""
    return value if isinstance(value, str) else json.dumps(value)


class VariantConfig(Config):
    """The optional parameter ``variant``: tells a run which variant of which sweep it is."""

    sweep: str
    name: str
    folder: str
    """Takes the place of the environment's data folder."""
    axes: dict[str, AxisValue]
    seed: NonNegativeInt
    parent_run_id: str | None = None
    """The sweep's run in MLflow."""


class Parameters(Config):
    """Everything that the parameter files may say."""

    seed: NonNegativeInt
    device: Device
    registered_model: str | None = None
    """A trained learner becomes a version of this registered model in MLflow; None: of none."""
    task: TaskConfig
    model: SerializeAsAny[LearnerConfig]
    training: TrainingConfig
    learner: LearnerSource | None = None
    """A network that was trained elsewhere, and is measured instead of one that is trained here."""
    data_generation: DataGenerationConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    baselines: Baselines
    """Name → type and arguments; null takes away one that conf/base lists."""
    comparison: ComparisonConfig
    probing: ProbingConfig
    identification: IdentificationConfig
    alignment: AlignmentConfig = AlignmentConfig()
    construction: ConstructionConfig
    phase_diagram: PhaseDiagramConfig
    diversity: DiversityConfig = DiversityConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    across_seeds: AcrossSeedsConfig = AcrossSeedsConfig()
    variant: VariantConfig | None = None
    """In no file: set by ``kedro sweep run`` for each run that it starts."""

    @property
    def recipe(self) -> Recipe:
        """What the learner's training depends on."""
        return Recipe(self.task, self.model, self.training, self.seed)


def check_parameters(raw: dict[str, Any]) -> Parameters:
    """Check a parameter tree, as the files and the command line give it.

    Raises:
        ParameterError: naming every offending parameter, the value given and what is allowed.
    """
    try:
        parameters = Parameters.model_validate(raw)
    except ValidationError as error:
        raise ParameterError(
            "\n".join(_explain(problem, raw) for problem in _own_errors(error))
        ) from None
    problems = _cross_check(parameters)
    if problems:
        raise ParameterError("\n".join(problems))
    return parameters


def _check_baselines(baselines: Baselines, task: TaskConfig) -> list[str]:
    """Names of baselines become names of curves and of MLflow's metrics."""
    if not baselines.active:
        return ["baselines: none given; allowed: at least one"]
    problems = []
    if LEARNER in baselines.active:
        problems.append(f"baselines.{LEARNER}: this name is the learner's own; allowed: any other")
    problems += [
        f"baselines.{name}: MLflow cannot take this name; allowed: letters, digits and _ - . / and "
        f"spaces, at most {LONGEST_NAME}, and no path that leads out of its folder"
        for name in baselines.active
        if not _is_metric_name(name)
    ]
    try:
        baselines.build(task)
    except (ValueError, TypeError) as error:
        problems.append(f"baselines: {error}")
    return problems


def _is_metric_name(name: str) -> bool:
    """Whether MLflow, and a folder, can take it."""
    plain = re.fullmatch(r"[A-Za-z0-9_\-./ ]+", name) and len(name) <= LONGEST_NAME
    return bool(plain) and name == posixpath.normpath(name) and not name.startswith((".", "/"))


def _own_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's errors, without those that only repeat that something below them is wrong."""
    errors = error.errors()
    paths = [problem["loc"] for problem in errors]
    return [
        problem
        for problem in errors
        if problem["type"] != "too_short"
        or not any(
            len(p) > len(problem["loc"]) and p[: len(problem["loc"])] == problem["loc"]
            for p in paths
        )
    ]


def _explain(problem: dict[str, Any], raw: dict[str, Any]) -> str:
    """One line for one of pydantic's errors about a raw parameter tree."""
    # Of a union ("bool or 'auto'") pydantic names the member it tried, which is no part of the
    # name.
    path = [
        str(part)
        for part in problem["loc"]
        if part != "bool" and not str(part).startswith("literal[")
    ]
    return explain(problem, ".".join(path), ", ".join(_fields_at(path[:-1], raw)))


def _fields_at(path: list[str], raw: dict[str, Any]) -> list[str]:
    """The names that the schema knows below a dotted path; the model's depend on its type."""
    if path == ["model"]:
        return list(LearnerConfig.of_type(raw["model"].get("type")).model_fields)
    schema: type[BaseModel] = Parameters
    for part in path:
        field = schema.model_fields.get(part)
        if field is not None:  # otherwise a place in a list, whose items have the schema
            schema = _schema_of(field.annotation) or schema
    return list(schema.model_fields)


def _schema_of(annotation: Any) -> type[BaseModel] | None:
    """The parameter class in an annotation: itself, an optional one, or a list's items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_schema_of(part) for part in get_args(annotation))
    return next((schema for schema in found if schema is not None), None)


def _cross_check(parameters: Parameters) -> list[str]:
    task, model, probing = parameters.task, parameters.model, parameters.probing
    comparison, generation = parameters.comparison, parameters.data_generation
    problems = _check_task(task, "task")
    if problems:  # what is built from such a task would fail as well
        return problems
    if comparison.num_queries <= task.dim:
        problems.append(
            f"comparison.num_queries: {comparison.num_queries} queries cannot determine implicit "
            f"weights; allowed: more than task.dim, which is {task.dim}"
        )
    if comparison.num_weight_prompts > generation.num_evaluation_prompts:
        problems.append(
            f"comparison.num_weight_prompts: {comparison.num_weight_prompts} given; allowed: at "
            "most "
            f"data_generation.num_evaluation_prompts, which is {generation.num_evaluation_prompts}"
        )
    if task.pool_size is not None:  # what is built only to be checked needs no large one
        task = task.model_copy(update={"pool_size": 1})
    wrongly_asked = _check_evaluation(parameters)
    probed = task if wrongly_asked else parameters.evaluation.probed(task)
    problems += _check_probing(probing, probed, model, generation)
    problems += wrongly_asked + _check_baselines(parameters.baselines, task)
    problems += _check_identification(parameters.identification, task)
    problems += _check_alignment(parameters.alignment, task, parameters.model)
    return problems + _check_dynamics(parameters, task)


def _check_dynamics(parameters: Parameters, task: TaskConfig) -> list[str]:
    allowed = [*parameters.baselines.active]
    if task.pool_size is not None:
        allowed.append(DISCRETE)
    wrong = [name for name in parameters.dynamics.plane or () if name not in allowed]
    problems = [
        f"dynamics.plane: {name!r} given; allowed: {', '.join(map(repr, allowed))}"
        for name in wrong
    ]
    try:
        training_families(task, parameters.dynamics.families)
    except ValueError as error:
        problems.append(f"dynamics.families: {error}")
    return problems


def _check_task(task: TaskConfig, name: str) -> list[str]:
    """Refuse prompts in which there is nothing to predict."""
    problems = []
    if task.num_examples < 2:
        problems.append(
            f"{name}.num_examples: {task.num_examples} given, which leaves no example before a "
            "prediction; allowed: at least 2"
        )
    if (task.pool_size or 0) * task.dim > MOST:
        problems.append(
            f"{name}.pool_size: {task.pool_size} vectors of task.dim={task.dim} given; allowed: at "
            f"most {MOST // task.dim}"
        )
    if all(component.is_zero for component in task.inputs):
        problems.append(f"{name}.inputs: all inputs are 0; allowed: a scale or a shift that is not")
    if all(component.is_zero for component in task.weights) and task.noise_std == 0:
        problems.append(
            f"{name}.weights: all labels are 0, since there is no noise either; allowed: a scale "
            "or a shift that is not 0"
        )
    return problems


def _check_identification(settings: IdentificationConfig, task: TaskConfig) -> list[str]:
    name, problems = "identification", []
    try:
        build_shifts(settings.shifts)
    except (ValueError, TypeError) as error:
        problems.append(f"{name}.shifts: {error}")
    try:
        families = build_families(task, settings.families)
    except (ValueError, TypeError) as error:
        return [*problems, f"{name}.families: {error}"]
    if len(families) < 2 or not any(family.grids for family in families):
        problems.append(
            f"{name}.families: {[family.name for family in families]} are left; allowed: at least "
            "two, one of them with free numbers"
        )
    return problems


def _check_alignment(
    alignment: AlignmentConfig, task: TaskConfig, model: LearnerConfig
) -> list[str]:
    problems = []
    missing = [layer for layer in alignment.layers or () if layer > (model.depth or layer)]
    if missing:
        problems.append(
            f"alignment.layers: layers {missing} do not exist; allowed: 0 (the embedding) to "
            f"{model.depth} (model.num_layers)"
        )
    if alignment.examples_seen is not None:
        try:
            alignment.examples_for(task.dim, task.num_examples)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _check_evaluation(parameters: Parameters) -> list[str]:
    task, model = parameters.task, parameters.model
    try:
        asked = parameters.evaluation.over(task)
    except ValidationError as error:
        raw = parameters.evaluation.task
        return [f"evaluation.task.{_explain(problem, raw)}" for problem in error.errors()]
    except ValueError as error:
        return [str(error)]
    problems = _check_task(asked, "evaluation.task") if parameters.evaluation.task else []
    if asked.num_examples > task.num_examples and not (model.any_length or parameters.learner):
        problems.append(
            f"evaluation.task.num_examples: {asked.num_examples} given, and a learner of type "
            f"{model.type} takes no longer prompts than in training; allowed: at most "
            f"task.num_examples, which is {task.num_examples}, or an architecture without learned "
            "positions (model.positions: rotary or none, model.type: gru, lstm, delta or "
            "linear_attention)"
        )
    return problems


def _check_probing(
    probing: ProbingConfig, task: TaskConfig, model: LearnerConfig, generation: DataGenerationConfig
) -> list[str]:
    problems = []
    if probing.num_prompts is not None and probing.num_prompts > generation.num_probing_prompts:
        problems.append(
            f"probing.num_prompts: {probing.num_prompts} given; allowed: at most "
            f"data_generation.num_probing_prompts, which is {generation.num_probing_prompts}"
        )
    most = probing.num_prompts or generation.num_probing_prompts
    for name, num_prompts in (("", most), ("calibration.", probing.calibration.num_prompts)):
        try:
            probing.fit.split_sizes(min(most, num_prompts))
        except ValueError as error:
            problems.append(f"probing.{name}num_prompts: {error}")
            break
    missing = [layer for layer in probing.layers or () if layer > (model.depth or layer)]
    if missing:
        problems.append(
            f"probing.layers: layers {missing} do not exist; allowed: 0 (the embedding) "
            f"to {model.depth} (model.{'num_loops' if model.type == 'looped' else 'num_layers'})"
        )
    too_long = [
        seen for seen in probing.context_lengths if seen is not None and seen >= task.num_examples
    ]
    if too_long and task.num_examples > 1:
        problems.append(
            f"probing.context_lengths: {too_long} examples are never all seen before a prediction; "
            f"allowed: 1 to {task.num_examples - 1} (prompts have {task.num_examples} examples: "
            "task.num_examples, or evaluation.task.num_examples if that is larger)"
        )
    absent = [name for name in probing.interventions.targets if name not in probing.targets]
    if absent:
        problems.append(
            f"probing.interventions.targets: {absent} are not probed; allowed: those of "
            f"probing.targets, {list(probing.targets)}"
        )
    try:
        build_targets(probing.targets, probing.ridge_penalty)
    except ValueError as error:
        problems.append(f"probing.targets: {error}")
    try:
        build_interventions(probing.interventions.methods)
    except ValueError as error:
        problems.append(f"probing.interventions.methods: {error}")
    return problems
