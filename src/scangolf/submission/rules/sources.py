"""The Python modules of a script: its own text, modules it carries as strings, packed ones."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scangolf.submission.rules.packed import unpacked
from scangolf.submission.rules.untrusted import parsed

SCRIPT = "train_gpt"
REGISTERS = {"exec", "ModuleType", "module_from_spec", "meta_path", "InspectLoader", "SourceLoader"}
"""Names by which a script makes modules out of strings."""
NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What the parser raises; the last two where a text is nested too deeply."""
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
    runs it so. Any other is only read. What it writes is believed as far as it is what its packed
    constants hold.
    """
    try:
        tree = ast.parse(script)
    except NO_PYTHON as error:
        return Sources({}, f"train_gpt.py is not Python text ({error})")
    modules = {SCRIPT: tree}
    if _names(tree) & REGISTERS:
        modules |= {_dotted(name): module for name, module in _embedded(tree)}
    sources = unpack(script) if "--source" in _constants(tree) else {}
    written = {_dotted(path): text for path, text in sources.items()}
    for name, text in written.items():
        module = _parse(text)
        if module is None:
            return Sources(modules, f"{name} of --source is not Python text")
        modules[name] = module
    packed = [v for module in modules.values() for v in _constants(module) if _is_opaque(v)]
    if all(_is_accounted_for(value, written) for value in packed):
        return Sources(modules, None)
    what = "more than the sources it writes" if written else "and does not write its sources"
    return Sources(modules, f"train_gpt.py holds packed constants, {what} (--source DIR)")


def _is_accounted_for(constant: str | bytes, written: Mapping[str, str]) -> bool:
    """Whether a packed constant is a text that was written, or a JSON object of such and of data.

    `written` goes by dotted names; so must the object, or by paths.
    """
    for text in unpacked(constant):
        files = parsed(text)
        if text in written.values() or (
            isinstance(files, dict)
            and all(
                part == written.get(_dotted(name)) or _is_data(part) for name, part in files.items()
            )
        ):
            return True
    return False


def _is_data(part: object) -> bool:
    """Whether it is a text that is no Python and packs none: JSON, kernels in another language."""
    if not isinstance(part, str) or any(map(_is_opaque, part.split('"'))):
        return False
    return parsed(part) is not None or _parse(part) is None


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
    module = _parse(value.value)
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    found = module is not None and any(isinstance(node, kinds) for node in module.body)
    return module if found else None


def _parse(text: str | bytes) -> ast.Module | None:
    try:
        return ast.parse(text)
    except NO_PYTHON:
        return None


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


def _constants(tree: ast.Module) -> list[Any]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def _is_opaque(value: object) -> bool:
    if isinstance(value, bytes):
        return len(value) >= OPAQUE_CHARACTERS
    return isinstance(value, str) and len(value) >= OPAQUE_CHARACTERS and "\n" not in value.strip()
