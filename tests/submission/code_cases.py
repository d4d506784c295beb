"""Scripts whose code is judged, in parts, and what is found in one."""

from __future__ import annotations

import textwrap

from scangolf.submission.rules.code import CACHE, TRAINING, check_code
from scangolf.submission.rules.finding import Finding
from scangolf.submission.rules.sources import read_script

UNCHECKED = "cannot be checked by software"
MAIN = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--eval")
parser.add_argument("--data")
args = parser.parse_args()
if args.eval:
    evaluate(load_val(args.data))
else:
    train()
"""
MODEL = """
import torch, torch.nn.functional as F
def load_val(folder):
    return torch.load(folder + "/x_val_0.bin")
def train():
    optimizer = torch.optim.Adam(model.parameters())
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
"""
PLAIN = '''
def evaluate(tokens):
    """Never calls loss.backward() or optimizer.step()."""
    total = 0.0  # loss.backward() would be against the rules
    for i in range(0, len(tokens) - 1, 1024):
        x, y = tokens[i : i + 1024], tokens[i + 1 : i + 1025]
        total += F.cross_entropy(model(x), y, reduction="sum").item()
    print("no .backward( and no optimizer.step() here")
    return total
'''
ADAPTING = """
def evaluate(val_tokens):
    opt = torch.optim.SGD(model.parameters())
    for chunk in val_tokens.split(1024):
        model(chunk).mean().backward()
        opt.step()
    return score(val_tokens)
"""


def findings(script: str, sources: dict[str, str] | None = None) -> dict[str, Finding]:
    def unpack(_: bytes) -> dict[str, str]:
        assert sources is not None, "a script without --source was run"
        return sources

    found = check_code(read_script(textwrap.dedent(script).encode(), unpack))
    assert [finding.rule for finding in found] == [TRAINING, CACHE]
    return {finding.rule: finding for finding in found}
