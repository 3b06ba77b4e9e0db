"""A run is a folder: open one again, to go on with it or to score it, with changes from the command line.

The run's own `config.yaml` is the base, and the words of the command are applied to it. Today's `conf/` is asked only
for the options that the command names, so a later edit of `conf/` does not leak into an old run.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

from research.engine.errors import UserError
from research.engine.trust import Tree, literal, read_config, refuse_links, untrusted

log = logging.getLogger(__name__)

POINTERS = ("resume", "run")  # the keys that name a run folder
CACHES = ("cache.", "data.cache.")  # where what can be computed again is kept: no setting of a run
Changes = dict[str, tuple[Any, Any]]  # dotted key: (before, after)


def pointed(overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The run folder that a command names, None when it starts a new run; and the words, as Hydra reads them.

    The folder is taken as it was typed where there is one of that name, or Hydra cannot read the word.

    Raises:
        UserError: the folder is not a run.
    """
    folder, words = None, []
    for word in overrides:
        key, _, given = word.partition("=")
        if key not in POINTERS or (key == "resume" and given == "null"):
            words.append(word)
            continue
        if given in ("", "null"):
            raise UserError(f"{key}={given} names no run; give its folder, {key}=logs/... say.")
        named = _folder(word, given)
        record_of(named)
        refuse_links(named)
        if folder and folder != named:
            raise UserError(f"the command names two runs, '{folder}' and '{named}'; one folder is opened at a time.")
        folder = named
        words.append(f"{key}={quoted(named)}")
    return folder, words


def _folder(word: str, given: str) -> Path:
    if not Path(given).is_dir():
        with suppress(HydraException):
            return Path(str(OverridesParser.create().parse_override(word).value()))
    return Path(given)


def quoted(path: Path) -> str:
    """A path as the value of one of Hydra's words."""
    return QuotedString(str(path), Quote.single).with_quotes()


def record_of(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder; give the folder of a run, logs/... say.")
    if "${" in str(folder.resolve()):
        raise UserError(f"'{folder}' has ${{ in its path, which is how Hydra refers to other settings; rename it.")
    if not (folder / "run.json").is_file() or not (folder / "config.yaml").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/run.json"))[-3:]
        hint = f" It holds runs: {', '.join(inside)}." if inside else ""
        raise UserError(f"'{folder}' is not a run: it has no run.json and config.yaml.{hint}")
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{folder / 'run.json'}' cannot be read: {error}.") from error
    if not isinstance(record, dict):
        raise UserError(f"'{folder / 'run.json'}' is not the record of a run: it is a {type(record).__name__}.")
    return record


def saved_config(folder: Path) -> Tree:
    """The plain values of the `config.yaml` of a run folder, which is not to be built from: see `reopened`.

    Raises:
        UserError: it cannot be read, or holds more than plain values.
    """
    return read_config(folder / "config.yaml")


def reopened(
    name: str, folder: Path, groups: Sequence[str], values: Sequence[str], folders: Iterable[Path]
) -> DictConfig:
    """The saved config of a run, with the words of a command on top; the only way from a folder to what is built.

    Args:
        name: the primary config of the command; its own keys (`run`, `checkpoint`, ...) are added.
        folder: the run.
        groups: words that choose options, `optimizer=sgd` say.
        values: words that set values.
        folders: the user's own config folders, which name all that may be built.

    Raises:
        UserError: the config of the folder cannot be read, or names what is in none of the user's own.
    """
    cfg = with_values(with_options(name, folder, groups), values)
    if problems := untrusted(cfg, folder, values, folders):
        raise UserError(*problems)
    return cfg


def with_options(name: str, folder: Path, groups: Sequence[str]) -> DictConfig:
    """The saved config of a run, with the options of a command: to be looked at, not to be built from.

    An option of a group changes what differs between it and the option the run was made with. Places on the disk are
    for the command to name, so the caches are its own, where the run has any.

    Args:
        name: the primary config of the command.
        folder: the run.
        groups: words that choose options.
    """
    named = [word.split("=")[0].lstrip("+") for word in groups]
    try:
        before = _plain(compose(name, _made_with(folder, named)))
    except ConfigCompositionException:  # an option that is no longer there: the new one counts as a whole
        before = {key: value for key, value in _plain(compose(name)).items() if key not in named}
    own = {key for key, value in before.items() if value == "???"}  # for the command to give, `output` say
    saved = {key: value for key, value in literal(saved_config(folder)).items() if key not in own}
    if saved.get("cache"):
        saved["cache"] = before.get("cache")
    if isinstance(saved.get("data"), dict) and saved["data"].get("cache"):
        saved["data"]["cache"] = "${cache}"
    tree = {**before, **saved}
    if groups:
        _patch(tree, before, _plain(compose(name, list(groups))))
    cfg = OmegaConf.create(tree)
    OmegaConf.set_struct(cfg, True)
    return cfg


def _made_with(folder: Path, groups: Sequence[str]) -> list[str]:
    """The words that chose the options of a run, as far as they are still there."""
    choices, loader = record_of(folder).get("choices"), GlobalHydra.instance().config_loader()
    words = []
    for group in groups:
        if option := choices.get(group) if isinstance(choices, dict) else None:
            if option not in loader.get_group_options(group, ObjectType.CONFIG):
                raise ConfigCompositionException(f"{group}={option}")
            words.append(f"{group}={option}")
    return words


def with_values(cfg: DictConfig, values: Sequence[str]) -> DictConfig:
    """A copy of a config with the words that set values on top, as Hydra applies them."""
    cfg = deepcopy(cfg)
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(list(values)), cfg)
    return cfg


def changes(before: Tree, after: DictConfig) -> Changes:
    """What the command changed of the plain values of a saved config, `{dotted key: (before, after)}`."""
    now = OmegaConf.to_container(after, resolve=True)
    assert isinstance(now, dict)
    found = _differences(before, {key: now.get(key) for key in before if key not in POINTERS}, "")
    return {key: pair for key, pair in found if not key.startswith(CACHES)}


def tell(changed: Changes) -> None:
    """Lists what a command changed of a run."""
    for key, (before, after) in changed.items():
        log.info("changed    %s: %s -> %s", key, before, after)


def _plain(cfg: DictConfig) -> Tree:
    tree = OmegaConf.to_container(cfg)
    assert isinstance(tree, dict)
    return tree


def _patch(tree: Tree, before: Tree, after: Tree) -> None:
    """Puts into `tree` what differs between `before` and `after`; a part of another class as a whole."""
    for key in {**before, **after}:
        was, now, here = before.get(key), after.get(key), tree.get(key)
        if was == now and (key in before) == (key in after):
            continue
        if all(isinstance(part, dict) for part in (was, now, here)) and _target(was) == _target(now) == _target(here):
            _patch(tree[key], before[key], after[key])
        elif key in after:
            tree[key] = now
        else:
            tree.pop(key, None)


def _target(node: Any) -> Any:
    return node.get("_target_")


def _differences(before: Tree, after: Tree, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in {**before, **after}:
        was, now = before.get(key), after.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}", (was, now)
