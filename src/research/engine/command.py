"""What a command consists of: the folders that options come from, and words that can be pasted into a shell."""

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from research.engine.errors import UserError

CONF = Path(__file__).parents[3] / "conf"
SEARCHPATH = "hydra.searchpath"


def config_folders(name: str, overrides: Sequence[str], config_dir: str | None = None) -> list[Path]:
    """Lists the folders that a command's options come from; of two options of one name the first folder's is taken.

    Args:
        name: the primary config, which may have a `hydra.searchpath` of its own.
        overrides: the command line without its flags.
        config_dir: what follows the flag `--config-dir`.

    Raises:
        UserError: a folder that does not exist.
    """
    primary = CONF / f"{name}.yaml"
    paths = OmegaConf.select(OmegaConf.load(primary), SEARCHPATH) if primary.is_file() else None
    for word in overrides:
        if word.split("=")[0].lstrip("+") == SEARCHPATH:
            paths = _parsed(word)
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise UserError(f"{word}: a list of folders is needed, '{SEARCHPATH}=[FOLDER]'.")
    more = [(f"--config-dir {config_dir}", config_dir)] if config_dir else []
    more += [(f"{SEARCHPATH}: {path}", str(path)) for path in paths or ()]
    return [CONF, *(_folder(*pair) for pair in more)]


def _folder(source: str, path: str) -> Path:
    if path.startswith("pkg://"):
        package = path.removeprefix("pkg://").replace("/", ".")
        try:
            spec = find_spec(package)
        except ModuleNotFoundError:
            spec = None
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not places:
            raise UserError(f"{source}: there is no package '{package}'.")
        return Path(places[0])
    folder = Path(path.removeprefix("file://"))
    if not folder.is_dir():
        raise UserError(f"{source}: there is no such folder; give one with options in it, model/NAME.yaml say.")
    return folder.resolve()


def _parsed(word: str) -> Any:
    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return None
    return (
        [str(item) if isinstance(item, QuotedString) else item for item in value] if isinstance(value, list) else None
    )


def further_folders() -> list[str]:
    """The words that give another command the config folders of this one, beside `conf/`."""
    sources = HydraConfig.get().runtime.config_sources
    paths = [source.path for source in sources if source.schema == "file" and Path(source.path) != CONF]
    return [word(SEARCHPATH, paths)] if paths else []


def word(key: str, value: Any) -> str:
    """`key=value` so that Hydra reads the value back as it is, with quotes where it needs them."""
    if isinstance(value, list):
        return f"{key}=[{','.join(_quoted(str(item)) for item in value)}]"
    text = str(value)
    try:
        if OverridesParser.create().parse_override(f"{key}={text}").value() == text:
            return f"{key}={text}"
    except HydraException:
        pass
    return f"{key}={_quoted(text)}"


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def shell(*words: Any) -> str:
    """Words as they are pasted into a shell."""
    return shlex.join(map(str, words))
