"""Pages of the documents that are made from the code: ``python -m tools.reference``.

`docs/reference/parameters.md` lists every parameter, from the pydantic schema and the docstrings
beside its fields. A test holds that the page is what this module gives.
"""

import inspect
import json
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import yaml
from pydantic import BaseModel

from incontext_linear.config import MOST, LearnerConfig
from incontext_linear.learner.registry import LEARNERS
from incontext_linear.parameters import Parameters

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/parameters.md"
INTRODUCTION = """\
# Parameters

<!-- Made by `python -m tools.reference` from the schema: do not edit. -->

Every parameter, with the value that `conf/base` gives it and the default of its class, which counts
where no file names it (and for who uses the library without Kedro). Files of an environment,
`conf/<env>/parameters*.yml`, are laid over `conf/base`; `kedro run --params NAME=VALUE` over both.
A number written `> 0` must be larger than 0. A name that is not listed here stops the run before it
starts.

| to change | command |
|---|---|
| one value | `kedro run --params task.noise_std=0.5` |
| several | `kedro run --params task.dim=4,model.num_layers=6` |
| a list | `kedro run --params "probing.context_lengths=[4, 8]"` |
| more, and for good | a folder of your own in `conf`, and `kedro run --env NAME` |
"""
SKIPPED = {"variant"}
"""In no parameter file."""
SIGNS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
SHORT = 60
"""A longer value is not shown; the file has it."""


def parameters_page() -> str:
    """The whole page."""
    schema = Parameters.model_json_schema()
    parts = [INTRODUCTION, _section("", Parameters, schema, base_parameters())]
    return "\n".join(parts).rstrip() + "\n"


def base_parameters() -> dict[str, Any]:
    """What the files of `conf/base` say together."""
    tree: dict[str, Any] = {}
    for path in sorted((ROOT / "conf/base").glob("parameters*.yml")):
        text = path.read_text(encoding="utf-8").replace("${globals:sweep}", "depth")
        tree |= yaml.safe_load(text)
    return tree


def _section(
    prefix: str, model: type[BaseModel], schema: dict[str, Any], base: dict[str, Any]
) -> str:
    """A heading and a table for a class of parameters, and the same for those below it."""
    rows, below = [], []
    definition = schema["$defs"][model.__name__] if prefix else schema
    for name, field in definition["properties"].items():
        nested = _nested(field, schema)
        if prefix + name in SKIPPED:
            continue
        inner = _model(model, name) if nested and nested.get("properties") else None
        if inner is LearnerConfig:
            below += _architectures(f"{prefix}{name}", base.get(name, {}))
            continue
        if inner is not None:
            below.append(_section(f"{prefix}{name}.", inner, schema, base.get(name, {})))
            continue
        value = base.get(name, "–")
        cells = (
            f"`{prefix}{name}`",
            _allowed(field, schema),
            _value(value),
            _value(field.get("default", "–")),
            _said_of(model, name),
        )
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    lines = []
    if prefix:
        lines += [f"{'#' * (1 + prefix.count('.'))} `{prefix[:-1]}`", "", _summary(model), ""]
    if rows:
        lines += ["| parameter | allowed | `conf/base` | default | |", "|---|---|---|---|---|"]
        lines += [*rows, ""]
    return "\n".join([*lines, *below])


def _architectures(name: str, base: dict[str, Any]) -> list[str]:
    """A section for each architecture's config; the first is what the files give."""
    sections = []
    for config in dict.fromkeys(architecture.config for architecture in LEARNERS.values()):
        schema = {"$defs": {config.__name__: config.model_json_schema()}}
        section = _section(f"{name}.", config, schema, {} if sections else base)
        types = [f"`{kind}`" for kind, entry in LEARNERS.items() if entry.config is config]
        heading = f"## `{name}`"
        if sections:
            section = section.replace(heading, f"{heading} of type {' or '.join(types)}", 1)
        sections.append(section)
    return sections


def _nested(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    reference = field.get("$ref") or (field.get("allOf") or [{}])[0].get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else None


def _model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    annotation = model.model_fields[name].annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _allowed(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Which values a field takes, in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_allowed(part, schema) for part in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("$ref"):
        name = field["$ref"].rpartition("/")[2]
        return "a distribution" if name == "DistributionConfig" else "name: {type, arguments}"
    kind = field.get("type")
    if kind == "array":
        items = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"a list of: {_allowed(items, schema)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"name: {_allowed(inner, schema)}" if isinstance(inner, dict) else "name: value"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true, false",
        "null": "null",
    }
    told = {key: sign for key, sign in SIGNS.items() if field.get(key, MOST) != MOST}
    limits = [f"{sign} {_number(field[key])}" for key, sign in told.items()]
    return " ".join([words.get(str(kind), "any value"), ", ".join(limits)]).strip()


def _number(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def _value(value: Any) -> str:
    if value == "–":
        return "–"
    if isinstance(value, float) and abs(value) >= 1e6:
        return f"`{value:.1e}`"
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= SHORT else "see the file"


@cache
def _class(model: type[BaseModel]) -> griffe.Object | griffe.Alias:
    """What griffe reads of a class's source: docstrings below fields, which Python drops."""
    source = Path(inspect.getfile(model))
    module = griffe.visit(model.__module__, source, source.read_text(encoding="utf-8"))
    return module[model.__qualname__]


def _said_of(model: type[BaseModel], name: str) -> str:
    """The docstring below a field, in one line."""
    for owner in (c for c in model.__mro__ if c.__module__.startswith("incontext_linear")):
        member = _class(owner).members.get(name)
        if member is not None:
            return _line(member.docstring.value) if member.docstring else ""
    return ""


def _summary(model: type[BaseModel]) -> str:
    said = _class(model).docstring
    return textwrap.fill(_line(said.value.split("\n\n")[0]), 100) if said else ""


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`").replace("None:", "null:").strip()


def main() -> None:
    """Write the page."""
    PAGE.write_text(parameters_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
