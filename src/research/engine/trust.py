"""What comes out of a run's folder is data: someone else may have made it. Nothing here imports torch.

The config of a folder may name only the classes and functions (`_target_`) that the user's own config folders name, or
the words of the present command. Its values are what they say: no reference in them is ever resolved. What is not so is
refused before anything is imported.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.engine.errors import UserError

TARGET = "_target_"
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, where the library was built with it
Tree = dict[Any, Any]


def targets(folders: Iterable[Path]) -> frozenset[str]:
    """Every `_target_` that the yaml files of config folders name, at any depth, read as plain data."""
    return frozenset(name for folder in folders for file in folder.rglob("*.yaml") for name in _in_file(file))


def _in_file(file: Path) -> Iterator[str]:
    try:
        tree = OmegaConf.load(file)
    except Exception:  # Hydra tells what is wrong with it once an option is chosen from it
        return
    for _, named in _named(OmegaConf.to_container(tree)):
        if isinstance(named, str) and "${" not in named:
            yield named


def _named(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The `_target_` of every node, with its dotted key."""
    for key, inner in _items(node):
        where = f"{place}.{key}" if place else str(key)
        if key == TARGET:
            yield where, inner
        else:
            yield from _named(inner, where)


def _items(node: Any) -> Iterator[tuple[Any, Any]]:
    """The items of a container; a reference (in what the user's own files say) stands for what it refers to."""
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from enumerate(node)
    elif OmegaConf.is_config(node) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
        for key in list(node) if OmegaConf.is_dict(node) else range(len(node)):
            if not OmegaConf.is_missing(node, key) and (key == TARGET or not OmegaConf.is_interpolation(node, key)):
                yield key, node[key]


def literal(value: Any) -> Any:
    """A plain value with every `${` escaped, so that OmegaConf, which resolves it once, gives it back as it was."""
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _unescaped(value: str) -> str:
    return re.sub(r"(\\+)\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", value)


def read_config(file: Path) -> Tree:
    """The plain values of a `config.yaml` as `record.write_config` writes it.

    Raises:
        UserError: it cannot be read, or holds references, which are not in a config that a run has written.
    """
    try:
        text = file.read_text("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=PARSER)):
            # a few of them, each of two of the ones before, stand for millions of values
            raise UserError(f"'{file}' has an alias (*name), which no run writes; it is not opened.")
        saved = OmegaConf.load(file)
    except UserError:
        raise
    except Exception as error:  # of the yaml library, or of the disk
        raise UserError(f"'{file}' cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(saved, DictConfig) or not saved:
        raise UserError(f"'{file}' is not the config of a run: it is empty, or a list.")
    tree = OmegaConf.to_container(saved)
    assert isinstance(tree, dict)
    problems = list(_references(tree, ""))
    if "hydra" in tree:
        problems.append("hydra: these settings are the command's, not the run's")
    if problems:
        raise UserError(*(f"'{file}' is not opened: {problem}." for problem in problems))
    return _plain(tree)


def _references(node: Any, place: str, again: bool = False) -> Iterator[str]:
    """What OmegaConf would resolve: every `${` that is not escaped, or that is where Hydra would resolve it again."""
    if isinstance(node, str) and "${" in node and (again or literal(_unescaped(node)) != node):
        yield f"{place}={node} is a reference, which a run's config has none of; give it a plain value"
    if isinstance(node, dict):
        again = node.get("_convert_", "none" if again else "all") not in ("all", "partial", "object")
    for key, inner in _items(node):
        yield from _references(inner, f"{place}.{key}" if place else str(key), again)


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(inner) for key, inner in node.items()}
    if isinstance(node, list):
        return [_plain(inner) for inner in node]
    return _unescaped(node) if isinstance(node, str) else node


def read_json(file: Path) -> Tree:
    """The values of a JSON file of a run's folder, to be put into a config.

    Raises:
        UserError: it cannot be read, or names what would be called.
    """
    try:
        tree = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{file}' cannot be read: {error}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"'{file}' cannot be read: it is a {type(tree).__name__}, not a mapping.")
    for where, named in _named(tree):
        raise UserError(f"'{file}' is not opened: {where}={named} would be called, and this file is plain data.")
    return literal(tree)


def untrusted(cfg: DictConfig, folder: Path, words: Sequence[str], folders: Iterable[Path]) -> list[str]:
    """What the config of a run, changed by the words of a command, may not name: one sentence each.

    Args:
        folder: the run.
        words: of the command, which may name what they like: they are the user's own.
        folders: the user's own config folders.
    """
    given = [parsed for word in words if (parsed := _parsed(word))]
    allowed = targets(folders) | {named for word in given for named in _of_word(word)}
    problems = list(_strangers(cfg, allowed))
    if not any(word.key_or_group.split(".")[0] == "pretrain" for word in given):
        problems += _strange_words(cfg.get("pretrain"), allowed)
    return [f"'{folder / 'config.yaml'}' is not opened: {problem}" for problem in problems]


def _strangers(cfg: Any, allowed: frozenset[str]) -> Iterator[str]:
    for where, named in _named(cfg):
        if not isinstance(named, str) or named not in allowed:
            yield (
                f"{where}={named} is not named in conf/ (nor in a folder given with --config-dir), and a folder that "
                "someone else made may run any code by such a name. If it is yours or you know what it does, name it "
                f"in a yaml file of conf/, or give it with the command: {where}={named}"
            )


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _of_word(word: Override) -> Iterator[str]:
    value = None if word.is_sweep_override() else word.value()
    if word.key_or_group.split(".")[-1] == TARGET:
        yield str(value)
    yield from (str(named) for _, named in _named(value))


def _strange_words(words: Any, allowed: frozenset[str]) -> Iterator[str]:
    """What is wrong with the words of the run before, which become a command."""
    if words is None:
        return
    words = OmegaConf.to_container(words) if OmegaConf.is_config(words) else words
    again = "give the words with the command if they are yours: pretrain=[...]"
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        yield f"pretrain={words} is no list of words; {again}."
        return
    for word in words:
        parsed = _parsed(word)
        of_hydra = parsed is None or parsed.key_or_group.startswith(("hydra", "resume", "run"))
        if parsed is None or word.startswith("-") or "${" in word or of_hydra or parsed.is_sweep_override():
            yield f"pretrain: '{word}' is more than a setting of a run; {again}."
            return
    try:
        cfg, default = compose("train", words), compose("train")
    except (HydraException, OmegaConfBaseException) as error:
        yield f"pretrain: {' '.join(str(error).split())}; {again}."
        return
    yield from (f"pretrain: {problem}" for problem in _strangers(cfg, allowed))
    if cfg.get("cache") != default.get("cache"):
        yield f"pretrain: a place on the disk (cache) is for the command to name; {again}."
    yield from _strange_words(cfg.get("pretrain"), allowed)


def refuse_links(folder: Path) -> None:
    """Raises a UserError for what in a folder leads out of it: what is written there would be written elsewhere."""
    top = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # of a run that is being trained now
                continue
            if stat.S_ISLNK(mode) and not path.resolve().is_relative_to(top):
                raise UserError(
                    f"'{path}' is a link to '{os.readlink(path)}', out of the run's folder, so that what is written "
                    "there would be written elsewhere. Put what it leads to in its place."
                )
            if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"'{path}' is neither a file nor a folder (a pipe or a device); remove it.")
