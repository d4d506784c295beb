"""What the code shows: training on validation tokens, caches that know the target.

Both look at what `--eval` can reach, in the script and in the modules it carries, and at nothing
else: comments, strings and functions that only training calls do not count. They read code and do
not prove anything: a `pass` means that nothing was found by these patterns, and what Python does by
names that are built at run time is not seen (callgraph.py, branches.py and flow.py say what else).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from scangolf.submission.rules.branches import EVAL
from scangolf.submission.rules.callgraph import Code, Program
from scangolf.submission.rules.finding import Finding, failed, passed, unchecked
from scangolf.submission.rules.flow import Flow
from scangolf.submission.rules.sources import SCRIPT, Sources

TRAINING, CACHE = "no training on unscored tokens", "no n-gram cache keyed with the target"
OPTIMISER = re.compile(r"(^|_)(opt|optim|optimi[sz]er|adamw?|sgd|muon)s?(_|$|\d)", re.IGNORECASE)
VALIDATION = re.compile(r"(^|[^a-zA-Z])val(id|idation)?([^a-zA-Z]|$)")
GROWS = (".append", ".extend")
SCORED = re.compile(r"(^|_)(loss|losses|nlls?|nats|bits|total|score)(_|$)", re.IGNORECASE)


def check_code(sources: Sources) -> list[Finding]:
    """Both rules, or why they cannot be checked."""
    try:
        return _check(sources)
    except RecursionError:
        why = "the code is nested too deeply to be followed"
        return [unchecked(rule, why) for rule in (TRAINING, CACHE)]


def _check(sources: Sources) -> list[Finding]:
    if SCRIPT not in sources.modules:
        return [unchecked(rule, sources.hidden or "no script") for rule in (TRAINING, CACHE)]
    program = Program(sources.modules, SCRIPT)
    seen = {"modules": len(sources.modules), "functions_reached": len(program.reached)}
    if not any(_handles_option(code) for code in program.reached):
        why = sources.hidden or "the script does not show where it handles --eval"
        return [unchecked(rule, why, **seen) for rule in (TRAINING, CACHE)]
    findings = [_check_training(program), _check_cache(program)]
    return [
        unchecked(f.rule, sources.hidden, **seen)
        if sources.hidden and f.verdict == "pass"
        else Finding(f.rule, f.verdict, f.why, f.evidence | seen)
        for f in findings
    ]


def _check_training(program: Program) -> Finding:
    """Gradients or updates in reach of an evaluation that reads the validation split.

    Test-time training is allowed on tokens that were scored before. Where the loop around an update
    adds to a score before it, that may be the case, and a person has to read it.
    """
    updates = [(code, call) for code in program.reached for call in _updates(code)]
    where = [f"{program.path(code)}, line {call.lineno}: {_text(call)}" for code, call in updates]
    if not updates:
        return passed(TRAINING, "nothing that evaluation reaches computes gradients or updates")
    reads = [str(code) for code in program.reached if _reads_validation(code)]
    if not reads:
        return unchecked(TRAINING, f"{where[0]}; on what data, the code does not show", found=where)
    unscored = [
        place
        for (code, call), place in zip(updates, where, strict=True)
        if not _scores_before(program, code, call)
    ]
    if unscored:
        return failed(
            TRAINING,
            f"{unscored[0]}, before anything is scored",
            found=unscored,
            validation_read_in=reads,
        )
    return unchecked(
        TRAINING,
        f"{where[0]}; its loop scores first, whether every token of it a person has to read",
        found=where,
        validation_read_in=reads,
    )


def _check_cache(program: Program) -> Finding:
    flow = Flow(program)
    if not flow.lookups:
        return passed(CACHE, "no table filled and read under targets feeds a loss or logits")
    places = sorted((f"{program.path(code)}, line {line}" for code, line in flow.lookups), key=len)
    return failed(
        CACHE,
        f"{places[0]}: uses what {', '.join(sorted(flow.filled))} holds under the target",
        found=places,
        tables=sorted(flow.filled),
    )


def _handles_option(code: Code) -> bool:
    """Whether the option --eval, or a name for it, is spoken of there."""
    return any(
        (isinstance(node, ast.Constant) and isinstance(node.value, str) and "--eval" in node.value)
        or (
            isinstance(node, ast.If | ast.IfExp) and EVAL.search(ast.unparse(node.test)) is not None
        )
        for node in code.nodes
    )


def _updates(code: Code) -> Iterator[ast.Call]:
    """Calls of backward, autograd.grad and an optimiser's step."""
    optimisers = {
        target.id
        for node in code.nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name) and OPTIMISER.search(_text(node.value.func))
    }
    for node in code.nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = _text(node.func.value), node.func.attr
        last = owner.rpartition(".")[2]
        if (
            (name == "backward" and owner != "super()")
            or (name == "grad" and last in ("autograd", "func"))
            or (name == "step" and (last in optimisers or OPTIMISER.search(last)))
        ):
            yield node


def _reads_validation(code: Code) -> bool:
    """Whether a name or a string there speaks of the validation split."""
    for node in code.nodes:
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value if len(node.value) < 80 else None
        if isinstance(name, str) and VALIDATION.search(name):
            return True
    return False


def _scores_before(program: Program, code: Code, call: ast.Call) -> bool:
    """Whether a loop around the update, there or where the function is called, scores first."""
    if _adds_to_score_before(code, call):
        return True
    calls = [
        (caller, node)
        for caller in program.reached
        for node in caller.nodes
        if isinstance(node, ast.Call) and code in program.resolve(caller, node.func)
    ]
    return bool(calls) and all(_adds_to_score_before(caller, node) for caller, node in calls)


def _adds_to_score_before(code: Code, call: ast.Call) -> bool:
    """Whether in a loop around the call a sum of losses grows, or a list of them, before it."""
    for loop in code.nodes:
        if not isinstance(loop, ast.For | ast.While) or call not in ast.walk(loop):
            continue
        for node in ast.walk(loop):
            if not isinstance(node, ast.AugAssign | ast.Call) or node.lineno >= call.lineno:
                continue
            grows = isinstance(node, ast.AugAssign) or _text(node.func).endswith(GROWS)
            if grows and _speaks_of_score(node):
                return True
    return False


def _speaks_of_score(node: ast.AST) -> bool:
    names = (getattr(n, "id", None) or getattr(n, "attr", None) for n in ast.walk(node))
    return any(SCORED.search(name) for name in names if name)


def _text(node: ast.AST) -> str:
    return ast.unparse(node)
