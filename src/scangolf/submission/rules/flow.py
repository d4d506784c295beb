"""Where target tokens flow in the code of an evaluation: into the keys of tables that it fills.

A value is labelled `target` where its name says so (y, target, labels ...), where it is what
cross_entropy is given to predict, or where it is the half of a pair of slices [:-1], [1:] that is
shifted; assignments, loops, zips and calls hand labels on. A table filled under keys labelled
`target` and read under such keys is labelled `cache`, and so is what is computed from it. Tables
are told apart by their names. Labels do not travel through attributes of objects, nor back over a
loop's end.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from scangolf.submission.rules.callgraph import Code, Program

TARGET = re.compile(r"(y|ys|tgt|targets?|labels?|next_tokens?)(_?ids?)?(_[A-Z0-9]+)?(_\w)?")
SINK = re.compile(r"(^|_)(loss|losses|logits?|logps?|probs?|nats|nlls?|log_probs?)($|_)", re.I)
SINK_CALLS = {
    *("cross_entropy", "nll_loss", "softmax", "log_softmax", "logaddexp", "logsumexp"),
    *("log", "log2", "where", "lerp"),
}
FILLS = {"scatter_", "scatter_add_", "index_add_", "index_put_", "index_copy_", "put_"}
FILLS_BY_KEY = {"setdefault", "update", "append", "add", "extend", "__setitem__"}
READS = {"get", "gather", "index_select", "take", "take_along_dim", "pop", "__getitem__"}
PLAIN_CALLS = {"len", "range", "isinstance", "type"}
PLAIN_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "size", "numel"}
Labels = frozenset[str]
NONE, IS_TARGET, IS_CACHE = Labels(), Labels({"target"}), Labels({"cache"})


class Flow:
    """Labels of all reached code, to a fixed point; `lookups` is what they show."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.filled: set[str] = set()
        """Names of the tables that are filled under keys with a target in them."""
        self.lookups: set[tuple[Code, int]] = set()
        """Where a loss or logits take what a table holds under a target: code and line."""
        self._parameters: dict[Code, dict[str, Labels]] = defaultdict(dict)
        self._returns: dict[Code, Labels] = {}
        before = None
        while before != (before := self._state()):
            for code in program.reached:
                self._walk(code)

    def _state(self) -> tuple[object, ...]:
        parameters = {code: dict(labels) for code, labels in self._parameters.items()}
        return parameters, dict(self._returns), set(self.filled), set(self.lookups)

    def _walk(self, code: Code) -> None:
        """One pass over the code's statements, in order: later names replace earlier ones."""
        scope = _Scope(self, code, dict(self._parameters[code]))
        for node in code.nodes:
            scope.visit(node)

    def hand_over(self, callee: Code, name: str, labels: Labels, table: str | None) -> None:
        """A call gives `labels` to a parameter; a table may get a second name by it."""
        known = self._parameters[callee]
        known[name] = known.get(name, NONE) | labels
        if table is not None and name not in self.filled and table in self.filled:
            self.filled.add(name)
        elif table is not None and name in self.filled:
            self.filled.add(table)

    def returned(self, code: Code) -> Labels:
        return self._returns.get(code, NONE)

    def give_back(self, code: Code, labels: Labels) -> None:
        self._returns[code] = self.returned(code) | labels


class _Scope:
    """The names of one function while it is walked through."""

    def __init__(self, flow: Flow, code: Code, labels: dict[str, Labels]) -> None:
        self.flow, self.code, self.names = flow, code, labels
        self.shifted = set(_shifted_slices(code.nodes))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            self._assign(node.target, node.value)
        elif isinstance(node, ast.AugAssign):
            self._fill(node.target)
            self._sink(node.target, self.labels(node.value))
            if isinstance(node.target, ast.Name):
                self.names[node.target.id] = self._name(node.target) | self.labels(node.value)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._loop(node.target, node.iter)
        elif isinstance(node, ast.Return) and node.value is not None:
            self.flow.give_back(self.code, self.labels(node.value) & IS_CACHE)
        elif isinstance(node, ast.Call):
            self._call(node)

    def labels(self, node: ast.AST | None) -> Labels:
        """What an expression's value comes from."""
        if node is None or isinstance(node, ast.Constant | ast.Lambda):
            return NONE
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.Attribute) and node.attr in PLAIN_ATTRIBUTES:
            return NONE
        for generator in getattr(node, "generators", ()):  # of a comprehension, before its element
            self._loop(generator.target, generator.iter)
        if isinstance(node, ast.Call) and _last(node.func) in PLAIN_CALLS | PLAIN_ATTRIBUTES:
            return NONE
        found = NONE.union(*(self.labels(part) for part in ast.iter_child_nodes(node)))
        if isinstance(node, ast.Subscript) and ast.unparse(node) in self.shifted:
            found |= IS_TARGET
        if isinstance(node, ast.Call):
            found = found.union(*map(self.flow.returned, self._callees(node)))
        return found | IS_CACHE if self._is_lookup(node) else found

    def _name(self, node: ast.Name) -> Labels:
        if node.id in self.names:
            return self.names[node.id]
        return IS_TARGET if TARGET.fullmatch(node.id) else NONE

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if (
            isinstance(target, ast.Tuple | ast.List)
            and isinstance(value, ast.Tuple | ast.List)
            and len(target.elts) == len(value.elts)
        ):
            given = [self.labels(part) for part in value.elts]
            for part, labels in zip(target.elts, given, strict=True):
                self._set(part, labels)
        else:
            self._set(target, self.labels(value))

    def _set(self, target: ast.expr, labels: Labels) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._set(part, labels)
        elif isinstance(target, ast.Starred):
            self._set(target.value, labels)
        elif isinstance(target, ast.Name):
            named = IS_TARGET if TARGET.fullmatch(target.id) else NONE
            self.names[target.id] = labels | named
            self._sink(target, labels)
        else:
            self._fill(target)
            self._sink(target, labels)

    def _loop(self, target: ast.expr, iterated: ast.expr) -> None:
        called = _last(iterated.func) if isinstance(iterated, ast.Call) else ""
        parts = iterated.args if isinstance(iterated, ast.Call) else []
        if called == "enumerate" and parts and isinstance(target, ast.Tuple):
            self._set(target.elts[0], NONE)
            self._loop(target.elts[1], parts[0])
        elif called == "zip" and isinstance(target, ast.Tuple) and len(target.elts) == len(parts):
            for part, source in zip(target.elts, parts, strict=True):
                self._set(part, self.labels(source))
        else:
            self._set(target, self.labels(iterated))

    def _call(self, node: ast.Call) -> None:
        name = _last(node.func)
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        labels = [self.labels(argument) for argument in arguments]
        if name in ("cross_entropy", "nll_loss"):
            for target in [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "target")]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name) and part.id not in ("self", "torch", "F"):
                        self.names[part.id] = self.names.get(part.id, NONE) | IS_TARGET
        if name in SINK_CALLS and any("cache" in found for found in labels):
            self.flow.lookups.add((self.code, node.lineno))
        if isinstance(node.func, ast.Attribute):
            by_key = name in FILLS_BY_KEY and isinstance(node.func.value, ast.Subscript)
            if by_key:
                self._fill(node.func.value)
            elif name in FILLS | {"setdefault"} and any("target" in found for found in labels[:-1]):
                self.flow.filled.add(_table(node.func.value))
            elif name == "at" and len(labels) > 1 and "target" in labels[1]:  # np.add.at
                self.flow.filled.add(_table(node.args[0]))
        for callee in self._callees(node):
            parameters = callee.parameters[1:] if callee.is_method else callee.parameters
            for parameter, argument in zip(parameters, node.args, strict=False):
                self._hand_over(callee, parameter, argument)
            for keyword in node.keywords:
                if keyword.arg in callee.parameters:
                    self._hand_over(callee, keyword.arg, keyword.value)

    def _hand_over(self, callee: Code, parameter: str, argument: ast.expr) -> None:
        named = isinstance(argument, ast.Name | ast.Attribute)
        table = ast.unparse(argument) if named else None
        self.flow.hand_over(callee, parameter, self.labels(argument), table)

    def _callees(self, node: ast.Call) -> Iterator[Code]:
        for code in self.flow.program.resolve(self.code, node.func):
            if isinstance(code.node, ast.ClassDef):
                code = code.inner.get("__init__", code)
            if code in self.flow.program.reached:
                yield code

    def _fill(self, target: ast.expr) -> None:
        """`table[key] = ...` under a key that a target went into."""
        if isinstance(target, ast.Subscript) and "target" in self._key(target):
            self.flow.filled.add(_table(target))

    def _key(self, node: ast.expr) -> Labels:
        """Labels of all the keys in table[a][b]."""
        found = NONE
        while isinstance(node, ast.Subscript):
            found, node = found | self.labels(node.slice), node.value
        return found

    def _is_lookup(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            return _table(node) in self.flow.filled and "target" in self._key(node)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return False
        table = node.func.value
        if _last(node.func) not in READS or _table(table) not in self.flow.filled:
            return False
        return any("target" in self.labels(part) for part in node.args) or (
            "target" in self._key(table)
        )

    def _sink(self, target: ast.expr, labels: Labels) -> None:
        name = _table(target).rpartition(".")[2]
        if "cache" in labels and SINK.search(name):
            self.flow.lookups.add((self.code, target.lineno))


def _table(node: ast.expr) -> str:
    """The name of what is indexed: `self.counts` for self.counts[a][b]."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _last(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _shifted_slices(nodes: list[ast.AST]) -> Iterator[str]:
    """tokens[1:] where tokens[:-1] stands, too: the targets of next-token prediction."""
    slices = [n for n in nodes if isinstance(n, ast.Subscript)]
    unshifted = {ast.unparse(n.value) for n in slices if _begins(n) == "at the first"}
    for node in slices:
        if _begins(node) == "at the second" and ast.unparse(node.value) in unshifted:
            yield ast.unparse(node)


def _begins(node: ast.Subscript) -> str:
    """Where the last slice of an index begins, of one that leaves something out."""
    last = node.slice
    if isinstance(last, ast.Tuple) and last.elts:
        last = last.elts[-1]
    if not isinstance(last, ast.Slice):
        return ""
    lower = last.lower.value if isinstance(last.lower, ast.Constant) else last.lower
    if last.upper is not None and (lower is None or lower == 0):
        return "at the first"
    return "at the second" if lower == 1 else ""
