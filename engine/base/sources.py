"""Collects values from flags, ``--set``, keyword arguments, the environment and files, and merges them by precedence.

Flag over ``--set`` over environment over file over tuned over default. Parses nothing: that is resolve's part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from sgl.engine.base import hub, tuned
from sgl.engine.base.config import (
    BY_NAME,
    GROUPS,
    OPTIONS,
    EngineConfig,
    Given,
    asks_for_nothing,
    lookup,
    resolve,
)
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.groups import LATER
from sgl.engine.base.machine import Machine, detect

Values = dict[str, Given]


def from_call(arguments: Mapping[str, object]) -> Values:
    """Keyword arguments of `sgl.Engine`: SGLang's names (``tp_size``), aliases or ``group.field``; None is not given.

    Raises:
        ConfigError: an unknown name.
    """
    known = {n: value for n, value in arguments.items() if value is not None and not asks_for_nothing(n, value)}
    return {lookup(name, "Engine").key: Given(value, "call", name) for name, value in known.items()}


def from_assignments(assignments: Iterable[str]) -> Values:
    """``--set name=value`` pairs; the last of several for the same option counts.

    Raises:
        ConfigError: no ``=`` in it, or an unknown name.
    """
    values: Values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set must be name=value, for example --set cache.page_size=16, got '{text}'.")
        if asks_for_nothing(name.strip(), value):
            continue
        option = lookup(name.strip(), "--set")
        values[option.key] = Given(value, "set", f"--set {name.strip()}")
    return values


def from_environment(environ: Mapping[str, str], *, compat: bool) -> Values:
    """``SGL_<NAME>`` and ``SGLANG_<NAME>`` variables, with ``compat`` also bare names such as MODEL_PATH.

    An empty variable counts as not set.

    Raises:
        ConfigError: ``compat`` and a variable asks for something that this version cannot do.
    """
    values: Values = {}
    for option in OPTIONS:
        for name in option.env:
            if environ.get(name) and (compat or name.startswith(("SGL_", "SGLANG_"))):
                values.setdefault(option.key, Given(environ[name], "env", name))
    for name in sorted(LATER) if compat else ():
        text = environ.get(name.upper(), "").strip()
        if text and not asks_for_nothing(name, text):
            raise ConfigError(f"{name.upper()}={text} is not supported by this version of sgl.", param=name.upper())
    return values


def from_file(path: Path) -> Values:
    """A YAML file: options by group (``cache: {page_size: 16}``) or by name (``page_size: 16``).

    Raises:
        ConfigError: the file cannot be read, is not YAML, or names an unknown option.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--config {path} cannot be read: {reason}.", param="--config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not valid YAML: {_where(error)}.", param="--config") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold options by name, not a {type(content).__name__}.")
    flat: dict[str, object] = {}
    for name, value in content.items():
        if name in GROUPS and isinstance(value, dict):
            flat.update({f"{name}.{field}": inner for field, inner in value.items()})
        else:
            flat[str(name)] = value
    flat = {name: value for name, value in flat.items() if not asks_for_nothing(name, value)}
    options = {name: lookup(name, str(path)) for name in flat}
    _refuse_twice(path, {name: option.key for name, option in options.items()})
    return {options[n].key: Given(v, "file", f"{n} in {path}") for n, v in flat.items() if v is not None}


def merge(*layers: Mapping[str, Given]) -> Values:
    """One value per option, from the first layer that has it; notes what it overrode."""
    merged: Values = {}
    for option in OPTIONS:
        found = [layer[option.key] for layer in layers if option.key in layer]
        if found:
            note = f"overrides {', '.join(given.where for given in found[1:])}" if found[1:] else found[0].note
            merged[option.key] = dataclasses.replace(found[0], note=note)
    return merged


def with_demo_model(values: Mapping[str, Given]) -> Values:
    """The values, with the model that ships with sgl where no model is named."""
    if "model.model_path" in values:
        return dict(values)
    demo = {
        "model.model_path": Given(str(hub.demo_model()), "default", "no model was named: the demo model of sgl"),
        "model.served_model_name": Given("sgl-demo", "default", "the demo model"),
    }
    return {**demo, **values}


def configure(values: Mapping[str, Given], machine: Machine | None = None) -> EngineConfig:
    """Resolves the values for this machine and the model's config.json, which is fetched from the Hub if need be.

    What nobody gave is taken from `sgl bench tune`, if it was run for this model on this machine.

    Raises:
        ConfigError: a value cannot be used.
        ModelError: the model has no readable config.json.
    """
    early = {option.key: option.default for option in OPTIONS}
    for key, given in values.items():  # all of them: a mistake should not wait for a download
        early[key] = BY_NAME[key].parse(given.value, given.where)
    model, revision, folder = (str(early[f"model.{field}"]) for field in ("model_path", "revision", "download_dir"))
    hf_config = hub.read_config(model, revision, folder) if model else {}
    machine = machine or detect(str(early["model.device"]))
    config = resolve(values, hf_config, machine)
    found = {} if config.kernel.no_tuned else tuned.read(config, hf_config, machine)
    return resolve({**found, **values}, hf_config, machine) if found else config


def _refuse_twice(path: Path, keys: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, key in keys.items():
        if seen.setdefault(key, name) != name:
            raise ConfigError(f"{path} names the same option twice: {seen[key]} and {name}.", param="--config")


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else str(problem)
