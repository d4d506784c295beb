"""What of a function's code can run when the script was started with --eval.

A test of something named `eval…`, or of the option's string, decides for its branch; so does one
that compares with a string that speaks of training. Any other test leaves both branches.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

EVAL = re.compile(r"(^|[^a-zA-Z])(eval|is_eval|evaluat)", re.IGNORECASE)
TRAIN = re.compile(r"(^|[^a-zA-Z])train", re.IGNORECASE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def live_nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Every node of a block that evaluation may reach, in the order of the text.

    Of functions and classes that are defined in it, what runs at the definition: decorators,
    defaults, the class's own statements. Annotations never run.
    """
    for statement in body:
        yield from _live(statement)
        if _always_leaves(statement):
            return


def _live(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, Function | ast.ClassDef):
        for decorator in node.decorator_list:
            yield from _decoration(decorator)
        if isinstance(node, ast.ClassDef):
            yield from live_nodes(node.body)
            return
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                yield from _live(default)
    elif isinstance(node, ast.If | ast.IfExp):
        yield from _live(node.test)
        decided = evaluates(node.test)
        for taken, branch in ((True, node.body), (False, node.orelse)):
            if decided in (None, taken):
                yield from live_nodes(branch) if isinstance(branch, list) else _live(branch)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("register_autograd"):
        yield from _live(node.func)  # a gradient runs when somebody asks for gradients, no sooner
    elif isinstance(node, ast.Dict):
        chosen = [k for k in node.keys if isinstance(k, ast.Constant) and _speaks(k, EVAL)]
        for key, value in zip(node.keys, node.values, strict=True):
            if not chosen or key in chosen:
                yield from _live(value)
                yield from () if key is None else _live(key)
    else:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns"):
                continue
            if isinstance(value, ast.AST):
                yield from _live(value)
            elif value and isinstance(value, list) and isinstance(value[0], ast.stmt):
                yield from live_nodes(value)
            elif isinstance(value, list):
                for part in value:
                    if isinstance(part, ast.AST):
                        yield from _live(part)


def _decoration(decorator: ast.expr) -> Iterator[ast.AST]:
    """A decorator's own nodes: `@operator.register_fake` registers, it does not run `operator`."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if not isinstance(called, ast.Attribute):
        yield from _live(decorator)
    elif isinstance(decorator, ast.Call):
        for part in (*decorator.args, *decorator.keywords):
            yield from _live(part)


def evaluates(test: ast.expr) -> bool | None:
    """Whether a test holds when the script evaluates, or None where its text does not tell."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = evaluates(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        parts = [evaluates(part) for part in test.values]
        decisive = isinstance(test.op, ast.Or)
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive
    if isinstance(test, ast.NamedExpr):
        return evaluates(test.value)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, op, right = test.left, test.ops[0], test.comparators[0]
        constants = [s for s in (left, right) if isinstance(s, ast.Constant) and s.value]
        holds = isinstance(op, ast.Eq | ast.In | ast.IsNot)
        if any(_speaks(constant, EVAL) for constant in constants):
            return holds if isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) else None
        if any(_speaks(constant, TRAIN) for constant in constants):
            return not holds if isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) else None
        if _speaks(left, EVAL) and isinstance(right, ast.Constant) and not right.value:
            return isinstance(op, ast.IsNot | ast.NotEq) if right.value is None else None
        return None
    if isinstance(test, ast.Name | ast.Attribute):
        return True if _speaks(test, EVAL) else None
    return None


def _speaks(node: ast.AST, pattern: re.Pattern[str]) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and pattern.search(node.value) is not None
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return pattern.search(name) is not None


def _always_leaves(statement: ast.stmt) -> bool:
    """Whether what follows a statement in its block cannot run."""
    if isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func) in ("sys.exit", "exit", "quit", "os._exit")
    if isinstance(statement, ast.If):
        branches = {True: statement.body, False: statement.orelse}
        decided = evaluates(statement.test)
        possible = branches.values() if decided is None else [branches[decided]]
        return all(any(_always_leaves(s) for s in branch) for branch in possible)
    return isinstance(statement, ast.With) and any(_always_leaves(s) for s in statement.body)
