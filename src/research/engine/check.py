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

SEVERAL = {"callbacks"}  # groups of which several options may be taken together
SUPPLIED = {"spec", "seed", "shuffle"}  # arguments that build gives, not the config
COUNTS = ("trainer.accumulate_grad_batches", "trainer.max_epochs", "trainer.log_every_n_steps")  # never 0
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def check(conf: str, config_name: str, overrides: list[str], sweep: bool = True) -> list[str]:
    """Returns one sentence for each mistake; an empty list when Hydra will accept the command.

    Args:
        conf: the absolute path of the config folder.
        config_name: the primary config, `train` say.
        overrides: the command line without its flags.
        sweep: whether a key may have several values.
    """
    with initialize_config_dir(conf, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        problems: list[str] = []
        groups: list[list[str]] = []  # for each override of a group, the words for each of its choices
        values: list[Override] = []
        for text in overrides:
            override, problem = _parse(text)
            if override is None:
                problems.append(problem)
            elif override.is_sweep_override() and not sweep:
                problems.append(f"{text} has several values; to run each of them, add -m.")
            elif _is_group(loader, override.key_or_group):
                problems += (wrong := _wrong_options(loader, override))
                groups += [] if wrong or override.value_type == ValueType.GLOB_CHOICE_SWEEP else [_words(override)]
            elif override.key_or_group.startswith("hydra"):
                problems += _composed(config_name, _words(override)[:1])[1]
            else:
                values.append(override)
        for words in _variants(groups):
            base, wrong = _composed(config_name, words)
            problems += wrong if base is None else _values(loader, config_name, base, words, values)
        return list(dict.fromkeys(problems))


def _composed(name: str, words: list[str]) -> tuple[DictConfig | None, list[str]]:
    try:
        return compose(name, words), []
    except Exception as error:  # whatever a yaml file can be wrong in
        return None, [" ".join(str(error).split())]


def _variants(groups: list[list[str]]) -> Iterator[list[str]]:
    """The first choice of each group together, then each further choice in its place."""
    first = [choices[0] for choices in groups]
    yield first
    for index, choices in enumerate(groups):
        for choice in choices[1:]:
            yield [*first[:index], choice, *first[index + 1 :]]


def _values(loader: ConfigLoader, name: str, base: DictConfig, words: list[str], values: list[Override]) -> list[str]:
    """Mistakes in `key=value` overrides, then in the whole config they make together."""
    problems, good = [], []
    for override in values:
        wrong = _wrong_key(loader, base, override) or _wrong_value(base, override)
        if wrong:
            problems.append(wrong)
        else:
            good.append(_words(override)[0])
    cfg, wrong = _composed(name, words + good)
    if cfg is None:
        return problems + wrong
    problems += [f"{key}=0: at least 1 is needed." for key in COUNTS if OmegaConf.select(cfg, key) == 0]
    return problems + list(_nodes(cfg, ""))


def _parse(text: str) -> tuple[Override | None, str]:
    try:
        parsed = OverridesParser.create().parse_override(text)
        if parsed.key_or_group:
            return parsed, ""
    except HydraException:
        pass
    return None, f"'{text}' is not of the form key=value; quote values with special characters: 'key=\"a, b\"'."


def _is_group(loader: ConfigLoader, key: str) -> bool:
    return bool(loader.get_group_options(key)) or bool(loader.list_groups(key))


def _choices(override: Override) -> list[Any]:
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _words(override: Override) -> list[str]:
    """The override itself, or one for each choice of a sweep."""
    assert override.input_line is not None
    if not override.is_sweep_override():
        return [override.input_line]
    head = override.input_line.split("=", 1)[0]
    return [f"{head}={word}" for word in override.sweep_string_iterator()]


def _wrong_options(loader: ConfigLoader, override: Override) -> list[str]:
    group = override.key_or_group
    options = loader.get_group_options(group, ObjectType.CONFIG)
    if override.is_delete():
        return [f"{group} cannot be left out. Allowed: {', '.join(sorted(options))}."]
    wrong = []
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    for choice in _choices(override):
        if isinstance(choice, list) and group not in SEVERAL:
            wrong.append(f"{group}={choice}: one option is needed. Allowed: {', '.join(sorted(options))}.")
            continue
        names = choice if isinstance(choice, list) else [choice]
        wrong += [unknown(group, "null" if n is None else str(n), options) for n in names if n not in options]
    return wrong


def _wrong_key(loader: ConfigLoader, base: DictConfig, override: Override) -> str:
    """A key that the config does not have. A `+key` must fit the signature of the node it is added to."""
    key = override.key_or_group
    if override.is_add() or override.is_force_add():
        return "" if "." in key and key.split(".")[0] in base else unknown("key", key, map(str, base))
    if any(key == name for name in _keys(base)):
        return _wrong_deletion(base, override) if override.is_delete() else ""
    if "." not in key and override.package is None and key not in base:
        return unknown("key or group", key, {*map(str, base), *loader.list_groups("")} - {"hydra"})
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    if isinstance(node, DictConfig):
        allowed = {str(k) for k in node} - HYDRA_KEYS
        more = set(_types(node)) - SUPPLIED - allowed
        hint = f" To pass '{leaf}' as well, write +{key}=..." if leaf in more else ""
        return unknown("key", key, {f"{parent}.{k}" if parent else k for k in allowed}) + hint
    return unknown("key", key, {k for k in _keys(base) if "._" not in k})


def _types(node: Any) -> dict[str, Any]:
    """The declared argument types of a node's target, as far as its source tells."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    try:
        found = signature(str(target)) if target else None
    except LookupError:
        found = None
    return found.types if found else {}


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    names: Any = list(node) if isinstance(node, DictConfig) else range(len(node)) if OmegaConf.is_list(node) else []
    for key in names:
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            yield from _keys(node[key], f"{prefix}{key}.")


def _wrong_deletion(base: DictConfig, override: Override) -> str:
    """Whole parts may be left out where there are several, callbacks say; single settings may not."""
    key = override.key_or_group
    if "." in key and isinstance(OmegaConf.select(base, key), DictConfig) and override.value() is None:
        return ""
    return f"~{key}: a setting cannot be left out; give it another value, {key}=..."


def _wrong_value(base: DictConfig, override: Override) -> str:
    """A value that its target does not accept, or, where the target does not say, of another kind than the default."""
    key = override.key_or_group
    if override.is_delete():
        return ""
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return f"{override.input_line}: glob chooses among the options of a group; {key} is a setting."
    default = OmegaConf.select(base, key, throw_on_missing=False)
    parent, _, leaf = key.rpartition(".")
    declared = _types(OmegaConf.select(base, parent)).get(leaf, Any) if parent else Any
    for choice in _choices(override):
        given = choice if isinstance(choice, bool | int | float | list | dict | None) else str(choice)
        if isinstance(given, str) and "${" in given:
            continue
        misfit = _misfit(given, declared)
        if not misfit and ("Any" not in str(declared) or (isinstance(default, bool) and declared is not Any)):
            continue
        if given is None and default is not None and not parent and not OmegaConf.is_config(default):
            return f"{key}=null: a value is needed; the default is {_plain(default)}."
        if given is not None and default is not None and not _alike(given, default):
            return f"{key}={given} is not {_kind(default)}; the default is {_plain(default)}."
        if misfit:
            return f"{key}={given}: {misfit}."
    return ""


def _alike(given: Any, default: Any) -> bool:
    if isinstance(default, str):
        return True
    if OmegaConf.is_list(default):
        return isinstance(given, list) and (not len(default) or all(_alike(item, default[0]) for item in given))
    if OmegaConf.is_dict(default):
        return isinstance(given, dict)
    if isinstance(default, bool) or isinstance(given, bool):
        return type(default) is type(given)
    return isinstance(given, int) or (isinstance(default, float) and isinstance(given, float))


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
    keys: Any = list(node)  # a key may be a number
    for key in keys:
        place = f"{path}.{key}" if path else str(key)
        if OmegaConf.is_interpolation(node, key):
            continue
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
    if target.startswith("research."):
        found = Signature({k: v for k, v in found.types.items() if k not in SUPPLIED}, found.open)
    for key in [str(k) for k in node if k not in HYDRA_KEYS]:
        yield from _argument(node, f"{path}.{key}", key, target, found)


def _argument(node: DictConfig, path: str, key: str, target: str, found: Signature) -> Iterator[str]:
    if key not in found.types:
        if not found.open:
            yield f"{path}: {unknown(f'argument of {target}', key, found.types)}"
        return
    try:
        value = None if OmegaConf.is_missing(node, key) else _plain(node[key])
    except OmegaConfBaseException as error:
        yield f"{path}: {str(error).splitlines()[0]}."
        return
    if OmegaConf.is_missing(node, key) or (isinstance(value, dict) and "_target_" in value):
        return
    if misfit := _misfit(value, found.types[key]):
        yield f"{path}={value}: {misfit}."


def _misfit(value: Any, declared: Any) -> str:
    """What is wrong with a value for an annotation, or an empty string."""
    try:
        # as JSON, because yaml has lists where Python has tuples
        TypeAdapter(declared).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return ", or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors()))
    except (PydanticUserError, TypeError, NameError):  # an annotation pydantic has no schema for
        pass
    return ""
