"""From a YAML file and `key=value` overrides to a `RunConfig`, with errors that name the key and the fix."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: a YAML file.
        overrides: `key.path=value` strings; values are YAML, list items are numbers (`objectives.0.weight=0.5`).

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value does not fit.

    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror}", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a YAML file: {error}", where=str(path)) from None
    if not isinstance(data, dict):
        raise ConfigError("the file must hold a mapping of sections", where=str(path))
    for override in overrides:
        _apply(data, override)
    return _validated(data)


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values.

    Args:
        config: stays as it is.
        settings: dotted key → value, as in overrides; objectives also by name (`objectives.forward_kl.weight`).

    Raises:
        ConfigError: a key is unknown, or a value does not fit.

    """
    # What a person did not write stays unwritten: some settings are refused where they stand and do nothing.
    data = config.model_dump(mode="json", exclude_unset=True)
    for key, value in settings.items():
        _set(data, _by_number(config, key), value)
    return _validated(data)


def setting_of(config: RunConfig, key: str) -> Any:
    """The value at a key as of `with_settings`; None where the section above it is not there."""
    value: Any = config.model_dump(mode="json")
    for part in _by_number(config, key).split("."):
        value = None if value is None else value[int(part)] if isinstance(value, list) else value.get(part)
    return value


def _by_number(config: RunConfig, key: str) -> str:
    head, _, rest = key.partition(".")
    name, _, below = rest.partition(".")
    if head != "objectives" or not name or name.isdigit():
        return key
    names = [objective.name for objective in config.objectives]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean objectives.{nearest[0]}?" if nearest else f"there are: {', '.join(names)}"
        raise ConfigError(f"no objective of this name; {hint}", where=key)
    return f"objectives.{names.index(name)}" + (f".{below}" if below else "")


def _validated(data: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"'{override}' is not an override", fix="write key=value, for example train.lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of '{override}' is not YAML", where=key) from None
    _set(data, key, value)


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node: Any = data
    for name in parents:
        node = _step(node, name, key, missing={})
    if isinstance(node, list):
        _step(node, leaf, key, missing=None)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _step(node: Any, name: str, key: str, missing: Any) -> Any:
    if isinstance(node, list):
        if not name.isdigit() or int(name) >= len(node):
            raise ConfigError(f"'{name}' is not an item of a list of {len(node)}", where=key)
        return node[int(name)]
    if node.get(name) is None:
        node[name] = missing
    child = node[name]
    if missing is not None and not isinstance(child, (dict, list)):
        raise ConfigError(f"'{name}' holds a value and has no keys below it", where=key)
    return child


def _explain(error: ValidationError) -> ConfigError:
    lines = []
    for item in error.errors():
        location = [part for part in item["loc"] if not _is_union_tag(part)]
        key = ".".join(str(part) for part in location)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            names = _known_names(location[:-1])
            nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
            prefix = "".join(f"{part}." for part in location[:-1])
            hint = f"did you mean {prefix}{nearest[0]}?" if nearest else f"known here: {', '.join(sorted(names))}"
            message = f"unknown key; {hint}"
        elif item["type"] == "missing":
            message = "this key is required"
        elif not isinstance(item["input"], (dict, list)) and item["type"] != "value_error":
            message = f"{message}, got {item['input']!r}"
        lines.append(f"{key}: {message}" if key else message)
    return ConfigError("\n".join(lines))


def _is_union_tag(part: int | str) -> bool:
    # pydantic puts the tag of a discriminated union, or the name of a plain union's member, into the location.
    return isinstance(part, str) and (
        part in _OBJECTIVE_TAGS or part.startswith(("literal[", "constrained-", "tuple[", "function-"))
    )


def _known_names(location: Sequence[int | str]) -> list[str]:
    models: list[Any] = [RunConfig]
    for part in location:
        found = [field.annotation for model in models if (field := model.model_fields.get(str(part)))]
        # An item of a list, or a key of a mapping, has the model that its place has already.
        models = [leaf for annotation in found for leaf in _models_in(annotation)] if found else models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


_OBJECTIVE_TAGS = frozenset(
    typing.get_args(model.model_fields["type"].annotation)[0]
    for model in _models_in(RunConfig.model_fields["objectives"].annotation)
)
