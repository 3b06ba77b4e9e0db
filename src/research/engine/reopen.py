"""A run is a folder: open one again, to go on with it or to score it, with changes from the command line.

The run's own `config.yaml` is the base. A change is what differs between the config composed from the run's first
overrides and the one composed with the new overrides added, so a later edit of `conf/` does not leak into an old run.
"""

import json
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from research.engine.errors import UserError

POINTERS = ("resume", "run")  # the keys that name a run folder
Changes = dict[str, tuple[Any, Any]]  # dotted key: (before, after)
OWN = (*POINTERS, "checkpoint")  # keys of the command, not of the run


def expand(overrides: list[str]) -> list[str]:
    """Puts the run's own overrides before the given ones when one of these names a run.

    Raises:
        UserError: the folder is not a run.
    """
    given = dict(word.split("=", 1) for word in overrides if "=" in word)
    pointers = [key for key in POINTERS if given.get(key, "null") != "null"]
    if not pointers:
        return overrides
    if not given[pointers[0]]:
        raise UserError(f"{pointers[0]}= needs the folder of a run, {pointers[0]}=logs/... say.")
    try:
        folder = Path(str(OverridesParser.create().parse_override(f"{pointers[0]}={given[pointers[0]]}").value()))
    except HydraException as error:
        name = given[pointers[0]]
        raise UserError(f"{pointers[0]}={name} needs quotes: '{pointers[0]}=\"{name}\"'.") from error
    keys = {_key(word) for word in overrides}
    kept = [word for word in record_of(folder)["overrides"] if _key(word) not in keys]
    return [*kept, *overrides, f"hydra.run.dir='{folder.resolve()}'"]


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+~")


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


def reopened(cfg: DictConfig, folder: Path, name: str) -> tuple[DictConfig, Changes]:
    """The saved config of a run with the command's changes applied, and the changes.

    Args:
        cfg: what Hydra composed from the run's overrides and the new ones.
        folder: the run.
        name: the primary config `cfg` was composed from.

    Returns:
        The config, and `{dotted key: (before, after)}`.
    """
    before = compose(name, record_of(folder)["overrides"])
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    tree = OmegaConf.to_container(saved)
    assert isinstance(tree, dict)
    changes: Changes = {}
    _patch(tree, _tree(before), _tree(cfg), "", changes)
    return OmegaConf.create(tree), changes


def _tree(cfg: DictConfig) -> dict[Any, Any]:
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k not in OWN]), resolve=True)
    assert isinstance(plain, dict)
    return plain


def _patch(tree: dict[Any, Any], old: dict[Any, Any], new: dict[Any, Any], prefix: str, changes: Changes) -> None:
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict) and isinstance(tree.get(key), dict):
            _patch(tree[key], was, now, f"{prefix}{key}.", changes)
        elif was != now or (key in old) != (key in new):
            changes[f"{prefix}{key}"] = (tree.get(key), now)
            if key in new:
                tree[key] = now
            else:
                tree.pop(key, None)
