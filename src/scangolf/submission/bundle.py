"""Which files of the package a script needs: what its entry imports, and what those import.

Imports are followed wherever they stand, inside functions too, and so are
`import_module(f"scangolf.ops.ssd_{backend}")`, which stands for every module it may name, and the
names of CUDA sources. What is only for type checkers is not followed. The package's `__init__`
files that merely gather names are left empty: of a package only what is imported by name is taken.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import get_args

from scangolf.config import LayerKind

ROOT = Path(__file__).parents[2]
"""The folder that holds the package."""
ENTRY = "scangolf/submission/script.py"
STAND_INS = {"scangolf/train/checkpoint.py": "scangolf/submission/checkpoint.py"}
"""Files of which a script has another version."""
MIXERS = "scangolf/layers/__init__.py"


@dataclass
class Bundle:
    """The files of a script, each after those that it imports, and what else they import."""

    layers: Collection[LayerKind]
    files: dict[str, str] = field(default_factory=dict)
    """Text by path: Python and CUDA."""
    libraries: set[str] = field(default_factory=set)
    """Top-level names of other packages that are imported, the standard library's left out."""

    def add(self, path: str) -> None:
        """Adds a file and all that it needs."""
        if path in self.files:
            return
        text = self._text(path)
        self.files[path] = text
        if path.endswith(".py"):
            needs = _needs(path, text)
            self.libraries |= needs.libraries
            for needed in needs.files:
                self.add(needed)
        self.files[path] = self.files.pop(path)  # now behind what it needs

    def _text(self, path: str) -> str:
        text = (ROOT / STAND_INS.get(path, path)).read_text(encoding="utf-8")
        if path != MIXERS:
            return text
        unused = set(get_args(LayerKind)) - set(self.layers)
        named = {f"from scangolf.layers.{kind} import" for kind in unused}
        named |= {f'    "{kind}":' for kind in unused}
        lines = text.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(tuple(named)))


def bundle(layers: Collection[LayerKind]) -> Bundle:
    """The files that a script with these kinds of layers needs.

    Other layers stay only if one of these is made of them.
    """
    found = Bundle(layers)
    found.add(ENTRY)
    parents = {str(p / "__init__.py") for path in found.files for p in _parents(path)}
    found.files = dict.fromkeys(sorted(parents - found.files.keys()), "") | found.files
    return found


@cache  # the scripts of several presets share most files
def _needs(path: str, text: str) -> _Needs:
    return _Needs(path, ast.parse(text))


class _Needs(ast.NodeVisitor):
    """What one module needs, in the order in which it names it."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.folder = PurePosixPath(path).parent
        self.files: list[str] = []
        self.libraries: set[str] = set()
        self.visit(tree)

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._module(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module is not None, "the package imports by full names"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            self._module(inner if _file(inner) else node.module)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "import_module":
            pattern = _pattern(node.args[0]).replace(".", "/") + ".py"
            self._matching(PurePosixPath(), pattern)
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._source(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        self._source(node)

    def _source(self, node: ast.expr) -> None:
        pattern = _pattern(node)
        if pattern.endswith(".cu"):
            self._matching(self.folder, pattern)

    def _matching(self, folder: PurePosixPath, pattern: str) -> None:
        found = sorted((ROOT / folder).glob(pattern))
        assert found, f"nothing is called {folder / pattern}"
        self.files += [path.relative_to(ROOT).as_posix() for path in found]

    def _module(self, name: str) -> None:
        top = name.partition(".")[0]
        if file := _file(name):
            self.files.append(file)
        elif top not in sys.stdlib_module_names:
            self.libraries.add(top)


def _file(module: str) -> str | None:
    """The path of a module of the package; None for anything else."""
    stem = module.replace(".", "/")
    paths = (f"{stem}.py", f"{stem}/__init__.py")
    return next((path for path in paths if (ROOT / path).is_file()), None)


def _parents(path: str) -> list[PurePosixPath]:
    return [parent for parent in PurePosixPath(path).parents if parent.name]


def _pattern(node: ast.expr) -> str:
    """A string as a pattern of file names, with * for what is filled in; "" for what is none."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_pattern, node.values))
    if isinstance(node, ast.FormattedValue):
        return "*"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
