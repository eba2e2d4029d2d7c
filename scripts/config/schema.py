"""What config.schema.yaml says of a configuration: its defaults, and a line for each thing that is not so."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

SCHEMA = Path(__file__).resolve().parent.parent.parent / "rules" / "config.schema.yaml"


def problems(config: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that is not as the schema says; fills its defaults into `config`."""
    found = list(_no_json(config, ""))
    if found:
        yield from found
        return
    schema = yaml.safe_load(SCHEMA.read_text())
    validator = extend(  # type: ignore[no-untyped-call]
        Draft202012Validator,
        {"properties": _filling(Draft202012Validator.VALIDATORS["properties"])},
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
    )(schema)
    for error in sorted(validator.iter_errors(config), key=lambda e: str(e.json_path)):
        yield _explain(error, schema)


def _is_integer(_checker: Any, value: Any) -> bool:
    """2.0 is none: what counts things is written as an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def _no_json(value: Any, key: str) -> Iterator[str]:
    """What YAML can write and JSON cannot: numbers that are none, keys that are no text, dates."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if not isinstance(name, str):
                yield f"{key or '(top level)'}: the key {name!r} is not text; write it in quotes, or correct it."
            else:
                yield from _no_json(entry, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for position, entry in enumerate(value):
            yield from _no_json(entry, f"{key}[{position}]")
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        yield f"{key}: it holds half a character (a lone surrogate); take it out."
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key}: {value} is not a number that can be used; write a finite one."
    elif not isinstance(value, str | int | float | None):
        yield f"{key}: {value!r} is a {type(value).__name__}; write it in quotes if it is text."


def repeated_keys(file: Path) -> Iterator[str]:
    """A line for each key that a YAML file gives twice in one place: YAML readers keep the last and say nothing."""

    seen_nodes: set[int] = set()

    def walk(node: yaml.Node | None, key: str) -> Iterator[str]:
        if id(node) in seen_nodes:  # an anchor's, once more
            return
        seen_nodes.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for name, entry in node.value:
                place = f"{key}.{name.value}" if key else str(name.value)
                line = name.start_mark.line + 1
                if name.value in seen and name.value != "<<":
                    yield f"{place}: given twice, in lines {seen[name.value]} and {line}; keep one."
                seen[name.value] = line
                yield from walk(entry, place)
        elif isinstance(node, yaml.SequenceNode):
            for position, entry in enumerate(node.value):
                yield from walk(entry, f"{key}[{position}]")

    try:
        yield from walk(yaml.compose(file.read_text(), Loader=yaml.SafeLoader), "")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        yield f"it cannot be read as YAML: {' '.join(str(error).split())}"


def _filling(check: Any) -> Any:
    """A validator of `properties` that first fills in their defaults."""

    def properties(
        validator: Any, values: Any, instance: Any, schema: Any
    ) -> Iterator[ValidationError]:
        if isinstance(instance, dict):
            for name, entry in values.items():
                if isinstance(entry, dict) and "default" in entry:
                    instance.setdefault(name, entry["default"])
        yield from check(validator, values, instance, schema)

    return properties


def _explain(error: ValidationError, schema: Any) -> str:
    """One line for one schema violation: the key, what is wrong, what would be right."""
    if error.validator == "anyOf" and error.context:  # this or null: what is wrong with it as this
        return _explain(
            min(
                (inner for inner in error.context if inner.schema_path[0] == 0),
                key=lambda inner: inner.validator == "unevaluatedProperties",
            ),
            schema,
        )
    key = error.json_path.removeprefix("$").removeprefix(".") or "(top level)"
    assert isinstance(error.schema, dict)
    if error.validator in ("additionalProperties", "unevaluatedProperties"):
        assert isinstance(error.instance, dict)
        known = _known_keys(error.schema, error.instance, schema)
        unknown = [name for name in error.instance if name not in known]
        guesses = difflib.get_close_matches(unknown[0], known, 1) if unknown else []
        hint = (
            f"did you mean '{guesses[0]}'?"
            if guesses
            else f"known keys here: {', '.join(sorted(known))}."
        )
        return f"{key}: unknown key {', '.join(map(repr, unknown))}; {hint}"
    described = error.schema.get("description")
    return f"{key}: {error.message}" + (f" ({described})" if described else "")


def _known_keys(
    part: dict[str, Any], instance: dict[str, Any], schema: dict[str, Any]
) -> list[str]:
    """Keys that a part of the schema allows for this instance, through $ref, allOf and if/then."""
    known = list(part.get("properties", {}))
    if "$ref" in part:
        target: Any = schema
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        known += _known_keys(target, instance, schema)
    for branch in [*part.get("allOf", []), part]:
        if "if" in branch and Draft202012Validator(branch["if"]).is_valid(instance):
            known += _known_keys(branch["then"], instance, schema)
    return known
