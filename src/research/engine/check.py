"""Finds every mistake in a command's names and types, before torch is imported.

Hydra stops at the first mistake; here all are collected. Names come from `conf/`, or from the config of the run that
the command opens again.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from research.engine.arguments import HYDRA_KEYS, SUPPLIED, argument_types, misfits, wrong_value
from research.engine.compatible import contradictions
from research.engine.errors import UserError, unknown
from research.engine.reopen import with_options, with_values
from research.engine.trust import untrusted
from research.engine.values import Mode

SEVERAL = {"callbacks", "logger"}  # groups of which several options may be taken together
WITHOUT = {  # how to have nothing of a group, which null does not say
    "augment": "augment=none",
    "callbacks": "callbacks.NAME=null, for each of them",
    "experiment": "no word about it",
    "finetune": "finetune=full",
    "logger": "logger=none",
    "scheduler": "scheduler=constant",
}
OWN = {"seed": int}  # types of the settings of train.yaml itself, where the kind of the default is not enough
Words = list[str]
T = TypeVar("T")


def check(
    conf: str,
    config_name: str,
    overrides: Words,
    sweep: bool = True,
    folder: Path | None = None,
    more: Sequence[Path] = (),
) -> Words:
    """Returns one sentence for each mistake; an empty list when Hydra will accept the command.

    Args:
        conf: the absolute path of the config folder.
        config_name: the primary config, `train` say.
        overrides: the command line without its flags.
        sweep: whether a key may have several values.
        folder: of the run that the command opens again.
        more: config folders beside `conf`.
    """
    with initialize_config_dir(conf, version_base="1.3"):
        loader = search(more)
        make = partial(with_options, config_name, folder) if folder else partial(compose, config_name)
        ours = [Path(conf), *more]
        law = partial(untrusted, folder=folder, words=overrides, folders=ours) if folder else lambda cfg: []
        problems: Words = []
        groups: list[Words] = []  # for each override of a group, the words for each of its choices
        values: list[Override] = []
        hydras: list[Words] = []  # the same of what is for Hydra itself
        for text in overrides:
            override, problem = _parse(text)
            if override is None:
                problems.append(problem)
            elif override.is_sweep_override() and (folder or not sweep):
                more_words = "one run folder is opened at a time" if folder else "to run each of them, add -m"
                problems.append(f"{text} has several values; {more_words}.")
            elif _is_group(loader, override.key_or_group):
                problems += (wrong := _wrong_options(loader, override))
                kind = hydras if override.key_or_group.startswith("hydra/") else groups
                kind += [] if wrong or override.value_type == ValueType.GLOB_CHOICE_SWEEP else [_words(override)]
            elif override.key_or_group.startswith("hydra"):
                hydras.append(_words(override))
            else:
                values.append(override)
        problems += _hydra(partial(compose, config_name), [words[0] for words in [*groups, *hydras]], len(groups))
        for words in _variants(groups):
            base, wrong = _tried(partial(make, words))
            problems += wrong if base is None else _values(loader, base, values, law)
        return list(dict.fromkeys(problems))


def search(more: Sequence[Path]) -> ConfigLoader:
    """Has Hydra, as it is initialized, look into further config folders; gives its loader."""
    loader: Any = GlobalHydra.instance().config_loader()
    for folder in more:
        schema = SearchPathQuery(provider="schema", path=None)
        loader.config_search_path.prepend("command-line", f"file://{folder}", schema)
    loader.repository.initialize_sources(loader.config_search_path)
    return loader


def _hydra(make: Callable[[Words], DictConfig], words: Words, first: int) -> Words:
    """Mistakes in words for Hydra itself, which have to fit together: a plugin, and the settings of it.

    Args:
        words: all that may bear on them.
        first: of those that are for Hydra.
    """
    groups = [word for word in words if "/" in word.split("=")[0] or word in words[:first]]
    if len(words) == first or _tried(partial(make, words))[0] is not None:
        return []
    wrong = [problem for word in words[first:] for problem in _tried(partial(make, [*groups, word]))[1]]
    return wrong or _tried(partial(make, words))[1]


def _tried(make: Callable[[], T]) -> tuple[T | None, Words]:
    """What is made, or what is wrong with it."""
    try:
        return make(), []
    except UserError as error:
        return None, list(error.problems)
    except Exception as error:  # whatever a yaml file can be wrong in
        return None, [" ".join(str(error).split()) or type(error).__name__]


def _variants(groups: list[Words]) -> Iterator[Words]:
    """The first choice of each group together, then each further choice in its place."""
    first = [choices[0] for choices in groups]
    yield first
    for index, choices in enumerate(groups):
        for choice in choices[1:]:
            yield [*first[:index], choice, *first[index + 1 :]]


def _values(
    loader: ConfigLoader, base: DictConfig, values: list[Override], law: Callable[[DictConfig], Words]
) -> Words:
    """Mistakes in `key=value` overrides, then in the whole config they make together.

    Args:
        law: what the config may not name; of the rest only what is trusted is looked up.
    """
    problems, good = [], []
    for override in values:
        wrong = _wrong_key(loader, base, override) or _wrong_value(base, override)
        if wrong:
            problems.append(wrong)
        else:
            good.append(_words(override)[0])
    cfg, wrong = _tried(partial(with_values, base, good))
    if cfg is None:
        return problems + wrong
    strange, wrong = _tried(partial(law, cfg))
    if strange or strange is None:
        return problems + wrong + (strange or [])
    problems += _wrong_modes(cfg)
    averages = (f"metrics.{key}" for key in _keys(cfg.get("metrics")) if key.endswith(".average"))
    problems += [
        f"{key}=null gives a number for each class, and a metric is one number; take micro, macro or weighted."
        for key in averages
        if OmegaConf.select(cfg, key) is None
    ]
    for group in SEVERAL:
        parts = cfg.get(group) or {}
        if "_target_" in parts and (group == "callbacks" or any(OmegaConf.is_dict(part) for part in parts.values())):
            return [*problems, f"{group}: of several each needs a key, NAME: {{_target_: ...}}."]
    problems += misfits(cfg)
    return problems or list(contradictions(cfg))


def _wrong_modes(cfg: DictConfig) -> Iterator[str]:
    """Of callbacks whose class takes any text. What `${mode}` says is told by the checkpoint's class."""
    for name, node in (cfg.get("callbacks") or {}).items():
        if not isinstance(node, DictConfig) or not {"monitor", "mode"} <= set(node):
            continue
        told = OmegaConf.is_interpolation(node, "mode") or argument_types(node).get("mode") == Mode
        if not told and node.mode not in get_args(Mode):
            yield f"callbacks.{name}.mode={node.mode}: input should be 'auto', 'min' or 'max'."


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
    value: Any = override.value()
    if override.value_type == ValueType.INTERVAL_SWEEP:
        return [value.start, value.end]
    return list(override.sweep_iterator()) if override.is_sweep_override() else [value]


def _words(override: Override) -> Words:
    """The override itself, or one for each choice of a sweep."""
    assert override.input_line is not None
    if not override.is_sweep_override():
        return [override.input_line]
    head = override.input_line.split("=", 1)[0]
    if override.value_type == ValueType.INTERVAL_SWEEP:
        return [f"{head}={end}" for end in _choices(override)]
    return [f"{head}={word}" for word in override.sweep_string_iterator()]


def _wrong_options(loader: ConfigLoader, override: Override) -> Words:
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
        if choice is None and group in WITHOUT:
            wrong.append(f"{group}=null: an option is needed; to do without, {WITHOUT[group]}.")
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
        more = set(argument_types(node)) - SUPPLIED - allowed
        hint = f" To pass '{leaf}' as well, write +{key}=..." if leaf in more else ""
        return unknown("key", key, {f"{parent}.{k}" if parent else k for k in allowed}) + hint
    return unknown("key", key, {k for k in _keys(base) if "._" not in k})


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
    declared = argument_types(OmegaConf.select(base, parent)).get(leaf) if parent else OWN.get(key)
    for choice in _choices(override):
        given = choice if isinstance(choice, bool | int | float | list | dict | None) else str(choice)
        interpolated = isinstance(given, str) and "${" in given
        if not interpolated and (wrong := wrong_value(key, given, default, declared)):
            return wrong
    return ""
