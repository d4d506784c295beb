"""What evaluation reaches in a script's code: what must be flagged, and what must not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from code_cases import ADAPTING, MAIN, MODEL, PLAIN, UNCHECKED, findings

import scangolf
from scangolf.submission.rules.code import CACHE, TRAINING
from scangolf.submission.rules.finding import Finding


def training(evaluate: str, main: str = MAIN) -> Finding:
    return findings(MODEL + textwrap.dedent(evaluate) + main)[TRAINING]


def cache(evaluate: str) -> Finding:
    return findings(MODEL + textwrap.dedent(evaluate) + MAIN)[CACHE]


MAINS = {
    "if and else": MAIN,
    "early return": """
def main():
    args = parse()
    if args.eval is not None:
        evaluate(load_val(args.data))
        return
    train()
if __name__ == "__main__":
    main()
""",
    "not": """
def main():
    args = parse()
    if not args.eval:
        train()
        return
    evaluate(load_val(args.data))
main()
""",
    "argv": """
import sys
if "--eval" in sys.argv:
    evaluate(load_val(sys.argv[-1]))
    sys.exit()
train()
""",
    "one of two": """
(evaluate if args.eval else train)(load_val("--eval"))
""",
    "by name": """
VERBS = {"--eval": evaluate, "--train": train}
VERBS[sys.argv[1]](load_val(sys.argv[-1]))
""",
}


@pytest.mark.parametrize("main", MAINS.values(), ids=MAINS.keys())
def test_training_that_evaluation_never_reaches_is_not_flagged(main: str) -> None:
    found = training(PLAIN, main)
    assert found.verdict == "pass", found
    found = training(PLAIN.replace("total = 0.0", "total = 0.0; train()"), main)
    assert found.verdict == "fail", found
    assert "F.cross_entropy(model(x), y).backward()" in found.evidence["found"][0]
    assert "train_gpt.evaluate > train_gpt.train, line 8" in found.evidence["found"][0]


ADAPTS = {
    "in the function": ADAPTING,
    "in a method of a class": """
class Adapter:
    def __init__(self, model):
        self.optimizer = torch.optim.SGD(model.parameters())
    def fit(self, tokens):
        model(tokens).mean().backward()
        self.optimizer.step()
def evaluate(tokens):
    Adapter(model).fit(tokens)
    return score(tokens)
""",
    "by autograd.grad": """
def evaluate(tokens):
    gradients = torch.autograd.grad(model(tokens).mean(), model.parameters())
    return score(tokens)
""",
    "handed on by name": """
def adapt(tokens):
    model(tokens).mean().backward()
def apply(function, tokens):
    function(tokens)
def evaluate(tokens):
    apply(adapt, tokens)
    return score(tokens)
""",
}


@pytest.mark.parametrize("evaluate", ADAPTS.values(), ids=ADAPTS.keys())
def test_training_on_validation_tokens_is_flagged(evaluate: str) -> None:
    found = training(evaluate)
    assert found.verdict == "fail"
    assert "before anything is scored" in found.why
    assert "train_gpt.load_val" in found.evidence["validation_read_in"]


@pytest.mark.parametrize(
    "evaluate",
    [
        """
        def evaluate(tokens):
            opt = torch.optim.SGD(model.parameters())
            for chunk in tokens.split(1024):
                loss = model(chunk)
                nats += loss.sum().item()
                loss.mean().backward()
                opt.step()
        """,
        """
        def adapt(chunk):
            model(chunk).mean().backward()
        def evaluate(tokens):
            losses = []
            for chunk in tokens.split(1024):
                losses.append(model(chunk).sum().item())
                for _ in range(3):
                    adapt(chunk)
        """,
    ],
)
def test_training_after_scoring_is_left_to_a_person(evaluate: str) -> None:
    found = training(evaluate)
    assert found.verdict == UNCHECKED
    assert "its loop scores first" in found.why


def test_methods_of_classes_that_evaluation_does_not_make_are_not_reached() -> None:
    trainer = """
class Optimiser:
    def step(self, factor):
        self.adam_optimizer.step()
class Trainer(Optimiser):
    def evaluate(self):
        return 0
    def extend(self, tokens, state):
        self.loss.backward()
class Model:
    def step(self, token):
        return token
    def extend(self, tokens, state):
        return tokens
def note(optimiser: Optimiser) -> None:
    pass
def evaluate(tokens):
    model = Model()
    note(None)
    model.extend(tokens, None)
    return model.step(tokens)
"""
    found = training(trainer)
    assert found.verdict == "pass", found
    assert training(trainer.replace("model = Model()", "model = Trainer()")).verdict == "fail"


N_GRAMS = {
    "a dictionary": """
def evaluate(tokens):
    counts = {}
    nats = 0.0
    for context, target in zip(tokens[:-1], tokens[1:]):
        logits = model(context)
        prob = 0.5 * logits.softmax(-1)[target] + 0.5 * counts.get((context, target), 0)
        nats -= prob.log()
        counts[(context, target)] = counts.get((context, target), 0) + 1
    return nats
""",
    "hashes into a tensor": """
def key(context, following):
    return (context * 31 + following) % 65536
def evaluate(tokens):
    table = torch.zeros(65536)
    x, y = tokens[:-1], tokens[1:]
    for i in range(len(y)):
        hashed = key(x[i], y[i])
        logits = model(x[: i + 1])
        logits[y[i]] += table[hashed]
        table[hashed] += 1
    return F.cross_entropy(logits, y)
""",
    "in two functions": """
class Cache:
    def __init__(self):
        self.seen = {}
    def look(self, context, following):
        return self.seen.get((context, following), 0.0)
    def add(self, context, following):
        self.seen[context, following] = 1.0
def evaluate(tokens):
    memory = Cache()
    x, targets = tokens[:-1], tokens[1:]
    for a, b in zip(x, targets):
        log_prob = model(a)[b] + memory.look(a, b)
        memory.add(a, b)
""",
    "scattered": """
def evaluate(tokens):
    table = torch.zeros(1024, 1024)
    x_BL, y_BL = tokens[:, :-1], tokens[:, 1:]
    loss = F.cross_entropy(model(x_BL), y_BL)
    boost = table.gather(1, y_BL)
    table.scatter_add_(1, y_BL, torch.ones_like(y_BL))
    return loss - torch.log(boost)
""",
}


@pytest.mark.parametrize("evaluate", N_GRAMS.values(), ids=N_GRAMS.keys())
def test_a_cache_keyed_with_the_target_is_flagged(evaluate: str) -> None:
    found = cache(evaluate)
    assert found.verdict == "fail", found
    assert "evaluate" in found.evidence["found"][0]
    assert set(found.evidence["tables"]) & {"counts", "table", "self.seen"}


NO_CACHES = {
    "plain": PLAIN,
    "the loss itself and the byte table": """
def evaluate(tokens):
    lengths = torch.zeros(1024)
    for i in range(1024):
        lengths[i] = size(i)
    x, y = tokens[:-1], tokens[1:]
    log_probs = model(x).log_softmax(-1)
    nats = -log_probs.gather(-1, y[:, None]).sum()
    loss_per_byte = nats / lengths[y].sum()
    return loss_per_byte
""",
    "a count of targets for a report": """
def evaluate(tokens):
    x, y = tokens[:-1], tokens[1:]
    seen = {}
    for target in y:
        seen[target] = seen.get(target, 0) + 1
    most = max(seen.values())
    loss = F.cross_entropy(model(x), y)
    return loss, most
""",
    "keyed with the context, a whole distribution": """
def evaluate(tokens):
    counts = torch.zeros(1024, 1024)
    nats = 0.0
    context = tokens[0]
    for t in range(len(tokens) - 1):
        logits = counts[context] + model(context)
        target = tokens[t + 1]
        nats += F.cross_entropy(logits, target)
        counts[context, target] += 1
        context = target
    return nats
""",
    "never reached": PLAIN + N_GRAMS["a dictionary"].replace("evaluate", "other"),
}


@pytest.mark.parametrize("evaluate", NO_CACHES.values(), ids=NO_CACHES.keys())
def test_what_is_no_cache_is_not_flagged(evaluate: str) -> None:
    found = cache(evaluate)
    assert found.verdict == "pass", found


EMBEDDED = '''
import sys, types
SOURCES = {
    "small.model": """
def evaluate(tokens):
    return score(tokens)
""",
    "small.run": """
import sys
from small import model
from small.model import evaluate
def main():
    if "--eval" in sys.argv:
        evaluate(load_val())
    else:
        model.train()
""",
}
for name, source in SOURCES.items():
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(source, module.__dict__)
from small.run import main
main()
'''


def test_modules_in_strings_are_followed() -> None:
    found = findings(EMBEDDED)[TRAINING]
    assert (found.verdict, found.evidence["modules"]) == ("pass", 3)
    spoilt = EMBEDDED.replace("return score(tokens)", "score(tokens).backward()")
    found = findings(spoilt.replace("load_val()", "load('x_val_0.bin')"))[TRAINING]
    assert found.verdict == "fail"
    assert "small.run.main > small.model.evaluate, line 3" in found.why
    prose = 'NOTE = """\ndef evaluate(tokens):\n    tokens.backward()\n"""\n' + MODEL + PLAIN + MAIN
    assert findings(prose)[TRAINING].evidence["modules"] == 1


def test_modules_by_path_for_a_loader_are_followed() -> None:
    files = {
        "small/__init__.py": "",
        "small/run.py": MODEL + ADAPTS["in a method of a class"] + MAIN,
        "small/notes.txt": "not a module",
    }
    assigned = "".join(f"FILES[{path!r}] = {text!r}\n" for path, text in files.items())
    script = f"""
import sys
FILES = {{}}
{assigned}
sys.meta_path.insert(0, Loader(FILES))
if __name__ == "__main__":
    from small.run import main
"""
    found = findings(script)[TRAINING]
    assert (found.verdict, found.evidence["modules"]) == ("fail", 2)
    assert "train_gpt > small.run > small.run.evaluate > small.run.Adapter" in found.why


def test_code_that_is_nested_too_deeply_is_left_open() -> None:
    deep = "total = " + " + ".join(["1"] * 900) + "\n"
    for found in findings(MODEL + PLAIN + deep + MAIN).values():
        assert (found.verdict, "nested too deeply" in found.why) == (UNCHECKED, True)
    for found in findings("x = " + "-" * 100_000 + "1").values():
        assert found.verdict == UNCHECKED


def test_what_cannot_be_read_is_said() -> None:
    for found in findings("print('no option')").values():
        assert (found.verdict, "does not show" in found.why) == (UNCHECKED, True)
    for found in findings("def ()").values():
        assert "not Python text" in found.why


def test_the_package_itself_evaluates_without_training() -> None:
    """All its modules, as a bundle would carry them: training is there, evaluation not near it."""
    root = Path(scangolf.__file__).parent
    package = {str(p.relative_to(root.parent)): p.read_text() for p in root.rglob("*.py")}
    script = """
import sys
OPTIONS = ("--eval", "--source")
from scangolf import run
if "--eval" in sys.argv:
    run.score_artifact(sys.argv[2], data="fineweb_val_0.bin")
else:
    run.run(None, None)
"""
    found = findings(script, package)
    assert {f.verdict for f in found.values()} == {"pass"}, found
    assert found[TRAINING].evidence["functions_reached"] > 100
    trains = findings(script.replace('if "--eval" in sys.argv', "if True"), package)[TRAINING]
    assert trains.verdict in ("fail", UNCHECKED)
    assert any("Gradients.add" in place for place in trains.evidence["found"])
