"""The Python modules of a script: its own text, modules it carries as strings, packed ones."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SCRIPT = "train_gpt"
REGISTERS = {"exec", "ModuleType", "module_from_spec", "meta_path", "InspectLoader", "SourceLoader"}
"""Names by which a script makes modules out of strings."""
OPAQUE_CHARACTERS = 1000
"""A constant of so many characters, or bytes, without a line end, hides something."""


@dataclass(frozen=True)
class Sources:
    modules: dict[str, ast.Module]
    """By dotted name, the script itself as `train_gpt` first."""
    hidden: str | None
    """Why not all of the code can be seen, or None."""


def read_script(script: bytes, unpack: Callable[[bytes], dict[str, str]]) -> Sources:
    """Parses a script and what it carries.

    One that knows the option `--source` is asked to write the modules it has packed: `unpack`
    runs it so. Any other is only read.
    """
    try:
        tree = ast.parse(script)
    except (SyntaxError, ValueError) as error:
        return Sources({}, f"train_gpt.py is not Python text ({error})")
    modules = {SCRIPT: tree}
    constants = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    if _names(tree) & REGISTERS:
        modules |= {_dotted(name): module for name, module in _embedded(tree)}
    hidden = None
    if any(_is_opaque(value) for value in constants):
        hidden = "train_gpt.py holds packed constants and does not write its sources (--source DIR)"
    if "--source" in constants:
        for path, text in unpack(script).items():
            try:
                modules[_dotted(path)] = ast.parse(text)
            except (SyntaxError, ValueError):
                return Sources(modules, f"{path} of --source is not Python text")
            hidden = None
    return Sources(modules, hidden)


def _embedded(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """String constants that are Python modules, under the name that stands beside them."""
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, ast.expr | None]] = []
        if isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        elif isinstance(node, ast.Call | ast.Tuple | ast.List):
            parts = node.args if isinstance(node, ast.Call) else node.elts
            pairs = list(zip([None, *parts], parts, strict=False))
        elif isinstance(node, ast.Assign):
            pairs = [(node.targets[0], node.value)]
        for beside, value in pairs:
            module = _as_module(value)
            if module is not None:
                yield _name_of(beside), module


def _as_module(value: ast.expr | None) -> ast.Module | None:
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str | bytes):
        return None
    try:
        module = ast.parse(value.value)
    except (SyntaxError, ValueError):
        return None
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return module if any(isinstance(node, kinds) for node in module.body) else None


def _name_of(beside: ast.expr | None) -> str:
    if isinstance(beside, ast.Subscript):  # FILES["model.py"] = ...
        beside = beside.slice
    if isinstance(beside, ast.Constant) and isinstance(beside.value, str):
        return beside.value
    return beside.id if isinstance(beside, ast.Name) else "embedded"


def _dotted(name: str) -> str:
    return name.removesuffix(".py").replace("\\", "/").replace("/", ".").removesuffix(".__init__")


def _names(tree: ast.Module) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _is_opaque(value: object) -> bool:
    if isinstance(value, bytes):
        return len(value) >= OPAQUE_CHARACTERS
    return isinstance(value, str) and len(value) >= OPAQUE_CHARACTERS and "\n" not in value.strip()
