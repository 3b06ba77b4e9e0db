"""A run is a folder: open one again, to go on with it or to score it, with changes from the command line.

The run's own `config.yaml` is the base, and the words of the command are applied to it. Today's `conf/` is asked only
for the options that the command names, so a later edit of `conf/` does not leak into an old run.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

from research.engine.errors import UserError

log = logging.getLogger(__name__)

POINTERS = ("resume", "run")  # the keys that name a run folder
Changes = dict[str, tuple[Any, Any]]  # dotted key: (before, after)
Tree = dict[Any, Any]


def pointed(overrides: Sequence[str]) -> Path | None:
    """The run folder that a command names, or None when it starts a new run.

    Raises:
        UserError: the folder is not a run.
    """
    for word in overrides:
        key, _, given = word.partition("=")
        if key not in POINTERS or (key == "resume" and given == "null"):
            continue
        if given in ("", "null"):
            raise UserError(f"{key}={given} names no run; give its folder, {key}=logs/... say.")
        try:
            folder = Path(str(OverridesParser.create().parse_override(word).value()))
        except HydraException as error:
            raise UserError(f"{word} needs quotes: '{key}=\"{given}\"'.") from error
        record_of(folder)
        return folder
    return None


def record_of(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder; give the folder of a run, logs/... say.")
    if not (folder / "run.json").is_file() or not (folder / "config.yaml").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/run.json"))[-3:]
        hint = f" It holds runs: {', '.join(inside)}." if inside else ""
        raise UserError(f"'{folder}' is not a run: it has no run.json and config.yaml.{hint}")
    try:
        return json.loads((folder / "run.json").read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"'{folder / 'run.json'}' cannot be read: {error}.") from error


def saved_config(folder: Path) -> DictConfig:
    """The `config.yaml` of a run folder. Raises UserError when it cannot be read."""
    try:
        saved = OmegaConf.load(folder / "config.yaml")
    except Exception as error:  # of the yaml library, or of the disk
        raise UserError(f"'{folder / 'config.yaml'}' cannot be read: {error}.") from error
    if not isinstance(saved, DictConfig) or not saved:
        raise UserError(f"'{folder / 'config.yaml'}' is not the config of a run: it is empty, or a list.")
    return saved


def reopened(name: str, folder: Path, groups: Sequence[str]) -> DictConfig:
    """The saved config of a run, with the options of a command.

    An option of a group changes what differs between it and the option the run was made with.

    Args:
        name: the primary config of the command; its own keys (`run`, `checkpoint`, ...) are added.
        folder: the run.
        groups: words that choose options, `optimizer=sgd` say.
    """
    choices = record_of(folder).get("choices", {})
    named = [word.split("=")[0].lstrip("+") for word in groups]
    made_with = [f"{group}={choices[group]}" for group in named if choices.get(group)]
    try:
        before = _plain(compose(name, made_with))
    except ConfigCompositionException:  # an option that is no longer there: the new one counts as a whole
        before = {key: value for key, value in _plain(compose(name)).items() if key not in named}
    tree = {**before, **_plain(saved_config(folder))}
    if groups:
        _patch(tree, before, _plain(compose(name, list(groups))))
    cfg = OmegaConf.create(tree)
    OmegaConf.set_struct(cfg, True)
    return cfg


def with_values(cfg: DictConfig, values: Sequence[str]) -> DictConfig:
    """A copy of a config with the words that set values on top, as Hydra applies them."""
    cfg = deepcopy(cfg)
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(list(values)), cfg)
    return cfg


def changes(before: DictConfig, after: DictConfig) -> Changes:
    """What the command changed of a saved config, `{dotted key: (before, after)}`."""
    trees = OmegaConf.to_container(before, resolve=True), OmegaConf.to_container(after, resolve=True)
    assert isinstance(trees[0], dict)
    assert isinstance(trees[1], dict)
    return dict(_differences(trees[0], {key: trees[1].get(key) for key in trees[0] if key not in POINTERS}, ""))


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
