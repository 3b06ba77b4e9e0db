"""The docstrings of the running Python's standard library, labelled by package: real text on every machine."""

import ast
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from research.data.text import Text, TextData
from research.engine.errors import unknown
from research.engine.values import PositiveInt

MIN_CHARS = 30
SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "ensurepip", "__pycache__"}


class Docstrings(TextData):
    """Modules, classes and functions of the largest packages; a text's group is its file.

    Args:
        packages: by name, or how many of the largest.

    Raises:
        ValueError: this Python has no such package.
    """

    def __init__(self, packages: list[str] | PositiveInt, **settings: object) -> None:
        super().__init__(**settings)  # pyright: ignore[reportArgumentType]
        self.packages = packages

    def read(self) -> list[Text]:
        root = Path(sysconfig.get_paths()["stdlib"])
        folders = {init.parent.name: init.parent for init in sorted(root.glob("*/__init__.py"))}
        folders = {name: folder for name, folder in folders.items() if name not in SKIPPED}
        named = list(folders) if isinstance(self.packages, int) else self.packages
        for name in named:
            if name not in folders:
                version = ".".join(map(str, sys.version_info[:2]))
                raise ValueError(unknown(f"package of Python {version} called", name, folders))
        found = [text for name in sorted(set(named)) for text in _package(root, folders[name])]
        counts = Counter(text.label for text in found)
        if silent := [name for name in named if name not in counts and not isinstance(self.packages, int)]:
            raise ValueError(f"{', '.join(silent)}: no docstring there has more than {MIN_CHARS} characters")
        if isinstance(self.packages, int):
            named = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: self.packages]]
        self.source = f"standard library of Python {sys.version.split()[0]}: {', '.join(named)}"
        return [text for text in found if text.label in named]


@cache  # the runs of a sweep read alike
def _package(root: Path, folder: Path) -> tuple[Text, ...]:
    return tuple(_texts(root, folder))


def _texts(root: Path, folder: Path) -> Iterator[Text]:
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(root)
        if SKIPPED.intersection(place.parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # some files are broken on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > MIN_CHARS:
                    yield Text(text, folder.name, str(place))
