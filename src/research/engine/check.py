"""Finds every mistake in a command's names and types, before torch is imported.

Hydra stops at the first mistake; here all are collected. Names come from `conf/`, argument names and types from the
source of each `_target_` (see `signature.py`), and where that leaves a type open, from the kind of the default.
"""

import json
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from research.engine.errors import unknown
from research.engine.signature import Signature, signature

HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def check(conf: str, config_name: str, overrides: list[str]) -> list[str]:
    """Returns one sentence for each mistake; an empty list when Hydra will accept the command.

    Args:
        conf: the absolute path of the config folder.
        config_name: the primary config, `train` say.
        overrides: the command line without its flags.
    """
    with initialize_config_dir(conf, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        problems: list[str] = []
        groups, values = [], []
        for text in overrides:
            override, problem = _parse(text)
            if override is None:
                problems.append(problem)
            elif override.key_or_group.startswith("hydra"):
                groups.append(text)
            elif _is_group(loader, override.key_or_group):
                wrong = _wrong_options(loader, override)
                problems += wrong
                groups += [] if wrong else [_first(override)]
            else:
                values.append(override)
        try:
            base = compose(config_name, groups)
        except HydraException as error:
            return [*problems, _sentence(error)]
        problems += _values(loader, config_name, base, groups, values)
        return list(dict.fromkeys(problems))


def _values(loader: ConfigLoader, name: str, base: DictConfig, groups: list[str], values: list[Override]) -> list[str]:
    """Mistakes in `key=value` overrides, then in the whole config they make together."""
    problems, good = [], []
    for override in values:
        wrong = _wrong_key(loader, base, override) or _wrong_kind(base, override)
        if wrong:
            problems.append(wrong)
        else:
            good.append(_first(override))
    try:
        cfg = compose(name, groups + good)
        return problems + list(_nodes(cfg, ""))
    except (HydraException, OmegaConfBaseException) as error:
        return [*problems, _sentence(error)]


def _parse(text: str) -> tuple[Override | None, str]:
    try:
        return OverridesParser.create().parse_override(text), ""
    except HydraException:
        return None, f"'{text}' is not of the form key=value; quote values with special characters: 'key=\"a, b\"'."


def _is_group(loader: ConfigLoader, key: str) -> bool:
    return bool(loader.get_group_options(key)) or bool(loader.list_groups(key))


def _choices(override: Override) -> list[Any]:
    if override.value_type in (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP):
        return list(override.sweep_iterator())
    return [override.value()]


def _first(override: Override) -> str:
    """The override itself, or the first choice of a sweep."""
    assert override.input_line is not None
    if not override.is_sweep_override():
        return override.input_line
    head = override.input_line.split("=", 1)[0]
    return f"{head}={next(iter(override.sweep_string_iterator()))}"


def _wrong_options(loader: ConfigLoader, override: Override) -> list[str]:
    group = override.key_or_group
    options = loader.get_group_options(group, ObjectType.CONFIG)
    chosen = [name for choice in _choices(override) for name in (choice if isinstance(choice, list) else [choice])]
    if override.is_delete():
        return []
    return [unknown(group, str(name), options) for name in chosen if name not in options and name is not None]


def _wrong_key(loader: ConfigLoader, base: DictConfig, override: Override) -> str:
    """A key that the config does not have. A `+key` must fit the signature of the node it is added to."""
    key = override.key_or_group
    if override.is_add() or override.is_force_add():
        return ""
    if any(key == name for name in _keys(base)):
        return ""
    if "." not in key and override.package is None and key not in base:
        return unknown("key or group", key, {*map(str, base), *loader.list_groups("")} - {"hydra"})
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    if isinstance(node, DictConfig):
        allowed = {str(k) for k in node} - HYDRA_KEYS
        more = _accepted(node) - allowed
        hint = f" To pass '{leaf}' as well, write +{key}=..." if leaf in more else ""
        return unknown("key", key, {f"{parent}.{k}" if parent else k for k in allowed}) + hint
    return unknown("key", key, {k for k in _keys(base) if "._" not in k})


def _accepted(node: DictConfig) -> set[str]:
    target = node.get("_target_")
    try:
        found = signature(target) if target else None
    except LookupError:
        found = None
    return set(found.types) if found else set()


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in map(str, node) if isinstance(node, DictConfig) else []:
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            yield from _keys(node[key], f"{prefix}{key}.")


def _wrong_kind(base: DictConfig, override: Override) -> str:
    """A value of another kind than the default's, where the default has one: a word for a number, say."""
    default = OmegaConf.select(base, override.key_or_group, throw_on_missing=False)
    if override.is_delete() or override.value_type in (ValueType.RANGE_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
        return ""
    for value in _choices(override):
        given = (
            value if isinstance(value, bool | int | float | list | dict) else str(value) if value is not None else None
        )
        if given is None or default is None or isinstance(default, str) or (isinstance(given, str) and "${" in given):
            continue
        numbers = isinstance(default, int | float) and isinstance(given, int | float)
        alike = (
            numbers
            and isinstance(default, bool) == isinstance(given, bool)
            and (isinstance(default, float) or isinstance(given, int))
        )
        if not alike and not isinstance(given, _container(default)):
            return f"{override.key_or_group}={given} is not {_kind(default)}; the default is {_plain(default)}."
    return ""


def _container(default: Any) -> tuple[type, ...]:
    return (dict,) if OmegaConf.is_dict(default) else (list,) if OmegaConf.is_list(default) else ()


def _kind(default: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number"}
    return names.get(type(default), "a list" if OmegaConf.is_list(default) else "a mapping")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _nodes(node: Any, path: str) -> Iterator[str]:
    """Holds every node with a `_target_` against the signature of that target."""
    if OmegaConf.is_list(node):
        for index in range(len(node)):
            yield from _nodes(node[index], f"{path}[{index}]")
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        yield from _target(node, path)
    for key in node:
        place = f"{path}.{key}" if path else str(key)
        if OmegaConf.is_missing(node, key):
            yield f"{place} has no value; give it one: {place}=..."
        else:
            yield from _nodes(node[key], place)


def _target(node: DictConfig, path: str) -> Iterator[str]:
    target = str(node["_target_"])
    try:
        found = signature(target)
    except LookupError:
        yield f"{path}._target_: nothing is called '{target}'; is the package installed and the name right?"
        return
    if found is None:
        return
    for key in [str(k) for k in node if k not in HYDRA_KEYS]:
        yield from _argument(node, f"{path}.{key}", key, target, found)


def _argument(node: DictConfig, path: str, key: str, target: str, found: Signature) -> Iterator[str]:
    if key not in found.types:
        if not found.open:
            yield f"{path}: {unknown(f'argument of {target}', key, found.types)}"
        return
    value = None if OmegaConf.is_missing(node, key) else _plain(node[key])
    if OmegaConf.is_missing(node, key) or (isinstance(value, dict) and "_target_" in value):
        return
    try:
        # as JSON, because yaml has lists where Python has tuples
        TypeAdapter(found.types[key]).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[-1]
        yield f"{path}={value}: {first['msg'][0].lower()}{first['msg'][1:]}."
    except (PydanticUserError, TypeError, NameError):  # an annotation pydantic has no schema for
        return


def _sentence(error: Exception) -> str:
    """Hydra's own message, on one line."""
    return " ".join(str(error).split())
