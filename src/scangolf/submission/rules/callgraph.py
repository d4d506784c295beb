"""Which functions an evaluation can reach, over all modules of a script.

A function is reached where its name is used in code that is reached, called or not; a method where
its name is used as an attribute and its class is used, too (rapid type analysis). Imports are
followed by name, and importing runs a module. Not seen: functions found by strings (getattr with a
built name), code in strings other than modules, and what a branch does that only data decides.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from scangolf.submission.rules.branches import Function, live_nodes

Definition = ast.Module | ast.ClassDef | Function
IMPLICIT = {"forward"}
"""Methods that torch calls, beside those that begin with two underscores."""


@dataclass(eq=False)
class Code:
    """A function, a class or the statements of a module itself."""

    module: str
    name: str
    """Qualified within the module; empty for the module itself."""
    node: Definition
    outer: Code | None
    inner: dict[str, Code] = field(default_factory=dict)
    """Functions and classes defined directly in it."""

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """What an evaluation may run of it, in the order of the text."""
        return list(live_nodes(self.node.body))

    @property
    def parameters(self) -> list[str]:
        if not isinstance(self.node, Function):
            return []
        a = self.node.args
        return [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]

    @property
    def is_method(self) -> bool:
        return self.outer is not None and isinstance(self.outer.node, ast.ClassDef)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


class Program:
    """Modules by dotted name, and from where in them an evaluation starts."""

    def __init__(self, modules: dict[str, ast.Module], entry: str) -> None:
        self.codes = {name: _collect(name, "", tree, None) for name, tree in modules.items()}
        self.imports = {
            (name, alias): target
            for name, tree in modules.items()
            for alias, target in _imports(name, tree)
        }
        self.reached: dict[Code, Code | None] = {}
        """Every code that an evaluation reaches, and the one it was first reached from."""
        self._live_classes: list[Code] = []
        self._wanted: set[str] = set()
        self._reach(self.codes[entry], None)
        if len(self.reached) == 1 or not any(c.module != entry for c in self.reached):
            # A loader that finds its modules by strings: wherever the option is spoken of.
            for code in self.codes.values():
                if code.module != entry and _mentions_option(code.node):
                    self._reach(code, self.codes[entry])

    def path(self, code: Code) -> str:
        """How the evaluation comes there."""
        steps = [code]
        while (before := self.reached[steps[-1]]) is not None:
            steps.append(before)
        return " > ".join(str(step) for step in reversed(steps))

    def resolve(self, code: Code, expression: ast.expr) -> list[Code]:
        """What a name or an attribute may stand for in `code`; nothing for other libraries'."""
        if isinstance(expression, ast.Name):
            return _listed(self._named(code, expression.id))
        if not isinstance(expression, ast.Attribute):
            return []
        full = self._module_of(code, expression.value)
        if full is not None:
            return _listed(self._member(full, expression.attr))
        name = expression.attr
        return [c.inner[name] for c in self._live_classes if name in c.inner]

    def _reach(self, code: Code, source: Code | None) -> None:
        waiting = [(code, source)]
        while waiting:
            code, source = waiting.pop()
            if code in self.reached:
                continue
            self.reached[code] = source
            waiting += [(found, code) for found in self._uses(code)]

    def _uses(self, code: Code) -> Iterator[Code]:
        if isinstance(code.node, ast.ClassDef):
            self._live_classes.append(code)
            for base in code.node.bases:
                yield from self.resolve(code, base)
            for name, inner in code.inner.items():
                if name in IMPLICIT | self._wanted or name.startswith("__"):
                    yield inner
        for node in code.nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                yield from _listed(self._named(code, node.id))
            elif isinstance(node, ast.Attribute):
                self._wanted.add(node.attr)
                yield from self.resolve(code, node)
            for module in _imported(code.module, node):
                for name in _prefixes(module):
                    yield from _listed(self._module(name))

    def _named(self, code: Code, name: str) -> Code | None:
        scope: Code | None = code
        while scope is not None:
            if name in scope.inner and (scope is code or not isinstance(scope.node, ast.ClassDef)):
                return scope.inner[name]
            scope = scope.outer
        module, member = self.imports.get((code.module, name), (None, None))
        if module is None or member is None:
            return None
        return self._member(module, member)

    def _member(self, module: str, name: str) -> Code | None:
        found = self._module(module)
        if found is not None:
            if name in found.inner:
                return found.inner[name]
            again, member = self.imports.get((found.module, name), (None, None))
            if again is not None and member is not None and again != module:
                return self._member(again, member)
        return self._module(f"{module}.{name}")

    def _module(self, name: str) -> Code | None:
        if name in self.codes:
            return self.codes[name]
        ends = [c for full, c in self.codes.items() if full.endswith("." + name)]
        return ends[0] if len(ends) == 1 else None

    def _module_of(self, code: Code, base: ast.expr) -> str | None:
        """The module that an expression such as `package.module` or an alias names."""
        if not isinstance(base, ast.Name | ast.Attribute):
            return None
        first, _, rest = ast.unparse(base).partition(".")
        module, member = self.imports.get((code.module, first), (None, None))
        if module is None:
            return None
        full = ".".join(part for part in (module, member, rest) if part)
        return full if self._module(full) is not None else None


def _collect(module: str, name: str, node: Definition, outer: Code | None) -> Code:
    code = Code(module, name, node, outer)
    for inner in _definitions(node):
        full = f"{name}.{inner.name}" if name else inner.name
        code.inner[inner.name] = _collect(module, full, inner, code)
    return code


def _definitions(node: ast.AST) -> Iterator[ast.ClassDef | Function]:
    """The functions and classes defined in a body, under whatever conditions."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, Function | ast.ClassDef):
            yield inner
        else:
            yield from _definitions(inner)


def _imports(module: str, tree: ast.Module) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Each local name that is imported, with its module and its name there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield alias.asname or first, (alias.name if alias.asname else first, None)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, (_base(module, node), alias.name)


def _imported(module: str, node: ast.AST) -> list[str]:
    """The modules that a statement may run: an import's own, or one named in a string."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = _base(module, node)
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called, name = ast.unparse(node.func).rpartition(".")[2], node.args[0].value
        if called in ("import_module", "run_module", "__import__") and isinstance(name, str):
            return [name]
    return []


def _base(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _prefixes(name: str) -> Iterator[str]:
    """a, a.b and a.b.c for a.b.c: importing a module runs its packages."""
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _mentions_option(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and n.value == "--eval" for n in ast.walk(node))


def _listed(code: Code | None) -> list[Code]:
    return [] if code is None else [code]
