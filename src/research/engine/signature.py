"""The arguments of a class or function, read from its source without importing it.

Importing torch and lightning takes seconds; parsing the one file that defines `torch.optim.Adam` takes milliseconds.
So names and types in a config are checked against the real signature at once.
"""

import ast
import builtins
import importlib
import importlib.util
import typing
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Modules whose names may stand in an annotation and are cheap to import. Any other name counts as `Any`.
CHEAP = {"typing", "collections.abc", "pathlib", "pydantic", "annotated_types", "research.engine.values"}
KNOWN = {name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union", "Annotated")}
KNOWN |= {name: getattr(builtins, name) for name in ("int", "float", "str", "bool", "list", "dict", "tuple", "set")}


@dataclass(frozen=True)
class Signature:
    """Attributes:
    types: annotation of each argument; `Any` stands for whatever could not be read.
    open: whether further keywords are accepted (`**kwargs`).
    """

    types: dict[str, Any]
    open: bool


@dataclass(frozen=True)
class Definition:
    node: ast.ClassDef | ast.FunctionDef
    module: str


@cache
def signature(target: str) -> Signature | None:
    """What `target` (a dotted path) accepts, or None where the source does not tell.

    Raises:
        LookupError: no module on the path defines it.
    """
    found = _find(target)
    return _read(found) if found else None


def _read(found: Definition) -> Signature | None:
    """Reads a function, a class with `__init__`, or the first base that has one."""
    if isinstance(found.node, ast.FunctionDef):
        return _arguments(found.node, found.module, skip=0)
    own = next((n for n in found.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if own is None:
        return _parent(found)
    given = _arguments(own, found.module, skip=1)
    if given.open and found.module.startswith("research."):  # our own classes pass `**settings` on to their base
        parent = _parent(found)
        return Signature(parent.types | given.types, parent.open) if parent else given
    return given


def _parent(found: Definition) -> Signature | None:
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        try:
            parent = _in_module(found.module, ast.unparse(base).split("[")[0])
        except LookupError:
            return None
        if parent is None:
            return None
        if inherited := _read(parent):
            return inherited
    return None


def _arguments(function: ast.FunctionDef, module: str, skip: int) -> Signature:
    arguments = function.args
    names = _namespace(module)
    listed = (arguments.posonlyargs + arguments.args)[skip:] + arguments.kwonlyargs
    return Signature({a.arg: _evaluate(a.annotation, names) for a in listed}, arguments.kwarg is not None)


class _Dotted(ast.NodeTransformer):
    """Has `torch.Tensor` and its like count as `Any` within an annotation, not make all of it `Any`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.Name:
        return ast.Name("Any", ast.Load())


class _Names(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        return Any


def _evaluate(annotation: ast.expr | None, names: "_Names") -> Any:
    if annotation is None:
        return Any
    try:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        tree = ast.fix_missing_locations(ast.Expression(_Dotted().visit(deepcopy(annotation))))
        return eval(compile(tree, "<annotation>", "eval"), {"__builtins__": {}}, names)
    except Exception:  # an annotation we cannot read is one we do not check
        return Any


def _namespace(module: str) -> _Names:
    names = _Names(KNOWN)
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in CHEAP:
            source = importlib.import_module(node.module)
            names |= {a.asname or a.name: getattr(source, a.name, Any) for a in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):  # an alias of a type, perhaps
            names[node.targets[0].id] = _evaluate(node.value, names)
    return names


def _find(target: str) -> Definition | None:
    """Splits `a.b.C` where the module ends and looks the rest up in it."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        if _file(module):
            return _in_module(module, ".".join(parts[end:]))
    raise LookupError(target)


def _in_module(module: str, name: str, seen: frozenset[str] = frozenset()) -> Definition | None:
    """Finds `name` in a module's source, following re-exports.

    Returns None when the module builds the name by other means than a definition or an import.

    Raises:
        LookupError: the module neither defines nor imports it.
    """
    if module in seen:
        raise LookupError(name)
    star: list[str] = []
    opaque = False
    for node in _statements(_tree(module)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Definition(node, module)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            opaque = True
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _in_module(source, alias.name, seen | {module}) if _file(source) else None
                if alias.name == "*":
                    star.append(source)
    for source in star:
        try:
            return _in_module(source, name, seen | {module}) if _file(source) else None
        except LookupError:
            continue
    if opaque or "." in name:
        return None
    raise LookupError(name)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Those that run when the module is imported: at the top, and in the branches of `if`, `try` and `with` there."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            waiting = inner + [s for handler in getattr(node, "handlers", []) for s in handler.body] + waiting


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _file(module)
    parts = module.split(".") if file and file.name == "__init__.py" else module.split(".")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


@cache
def _file(module: str) -> Path | None:
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root)  # of a top-level package: finds, does not import
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin)
    if not rest:
        return place if place.suffix == ".py" else None
    place = place.parent.joinpath(*rest)
    for file in (place / "__init__.py", place.with_name(place.name + ".py")):
        if file.is_file():
            return file
    return None


@cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    assert file is not None
    return ast.parse(file.read_text("utf-8"))
