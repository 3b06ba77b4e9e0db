"""Holds the values of a config against the arguments of the classes and functions they are for.

Argument names and types come from the source of each `_target_` (see `signature.py`); where that leaves a type open,
the kind of the default has to do.
"""

import json
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from research.engine.errors import unknown
from research.engine.limits import LIMITS
from research.engine.signature import Signature, signature

SUPPLIED = {"spec", "seed", "shuffle"}  # arguments that build gives, not the config
SWITCHED = ("augment", "callbacks", "logger", "metrics")  # groups whose parts are optional
FLAGS = {"_partial_": "true or false", "_recursive_": "true or false", "_convert_": "none, partial, object or all"}
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def argument_types(node: Any) -> dict[str, Any]:
    """The declared argument types of a node's target, as far as its source tells."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    try:
        found = _signature(str(target)) if target else None
    except LookupError:
        found = None
    return found.types if found else {}


def _signature(target: str) -> Signature | None:
    found = signature(target)
    return Signature(found.types | LIMITS.get(target, {}), found.open) if found else None


def wrong_value(key: str, given: Any, default: Any, declared: Any | None) -> str:
    """What is wrong with the value of a key, or an empty string.

    Args:
        default: what the config holds for it.
        declared: the type of the argument it is for; `Any` where the source does not tell, None for what is none.
    """
    if given is None and default is not None and _needed(key, default, declared):
        usual = "" if OmegaConf.is_dict(default) else f"; the default is {_plain(default)}"
        return f"{key}=null: a value is needed{usual}."
    declared = Any if declared is None else declared
    if misfit := _misfit(given, declared):
        return f"{key}={given}: {misfit}."
    told = "Any" not in str(declared) or (isinstance(default, bool) and declared is not Any)
    if not told and given is not None and default is not None and not _alike(given, default):
        return f"{key}={given} is not {_kind(default)}; the default is {_plain(default)}."
    return ""


def _needed(key: str, default: Any, declared: Any | None) -> bool:
    """Whether null cannot be meant, as far as the type leaves that open."""
    if OmegaConf.is_dict(default):  # a part, which null switches off where there are several
        return "_target_" in default and key.split(".")[0] not in SWITCHED
    return declared is None or (declared is not Any and "Any" in str(declared))


def _alike(given: Any, default: Any) -> bool:
    if isinstance(default, str):
        return True
    if OmegaConf.is_list(default):
        return isinstance(given, list) and (not len(default) or all(_alike(item, default[0]) for item in given))
    if OmegaConf.is_dict(default):
        return isinstance(given, dict)
    if isinstance(default, bool) or isinstance(given, bool):
        return type(default) is type(given)
    return isinstance(given, int | float)  # a whole number may be one that happens to have no fraction


def _kind(default: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(default), "a list" if OmegaConf.is_list(default) else "a mapping")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def misfits(node: Any, path: str = "") -> Iterator[str]:
    """Holds every node with a `_target_` against the signature of that target."""
    if OmegaConf.is_list(node):
        for index in range(len(node)):
            yield from misfits(node[index], f"{path}[{index}]")
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
            yield from misfits(node[key], place)


def _target(node: DictConfig, path: str) -> Iterator[str]:
    target = str(node["_target_"])
    try:
        found = _signature(target)
    except LookupError:
        yield f"{path}._target_: nothing is called '{target}'; is the package installed and the name right?"
        return
    for flag, allowed in FLAGS.items():
        if flag in node and str(node[flag]).lower() not in allowed.replace(",", "").split():
            yield f"{path}.{flag}={node[flag]}: {allowed} is needed."
    if found is None:
        return
    if target.startswith("research."):
        found = Signature({k: v for k, v in found.types.items() if k not in SUPPLIED}, found.open)
    if path == "model":
        found = Signature({"pretrained": str | None, **found.types}, found.open)  # a run, which any network starts from
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
        return ", or ".join(dict.fromkeys(_said(e["type"], e["msg"]) for e in error.errors()))
    except (PydanticUserError, TypeError, NameError):  # an annotation pydantic has no schema for
        pass
    return ""


def _said(kind: str, message: str) -> str:
    if kind == "missing":
        return "more values are needed"
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]
