"""A small submission in a folder, made by the package, and scripts for it to break."""

from __future__ import annotations

import hashlib
import json
import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scangolf.artifact.codec import save_artifact
from scangolf.artifact.load import load
from scangolf.config import AttentionConfig, ModelConfig, S6Config
from scangolf.data.build import build_dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.model import HybridLM
from scangolf.score.bpb import byte_table
from scangolf.score.evaluate import Score, evaluate
from scangolf.submission.rules.evaluation import probe_tokens
from scangolf.submission.rules.split import open_split

SEQ_LEN = 64
DOCUMENTS = [
    f"The {a} {b} went to the {c}, over thé {c}  and {i} hills; it said: \N{OWL} {a} {b}!"
    for i, a in enumerate(("old", "young", "small", "quiet"))
    for b in ("fox", "owl", "bear", "cat", "hare")
    for c in ("river", "town", "wood", "lake")
]

EVALUATES = """
import argparse, json
from pathlib import Path

import numpy as np

from scangolf.artifact.load import load
from scangolf.data.shards import read_shard
from scangolf.score.bpb import byte_table
from scangolf.score.evaluate import evaluate

parser = argparse.ArgumentParser()
parser.add_argument("--eval")
parser.add_argument("--data", type=Path)
args = parser.parse_args()
model, tokenizer = load(args.eval)
tokens = np.concatenate([read_shard(path) for path in sorted(args.data.glob("*_val_*.bin"))])
score = evaluate(model, tokens, byte_table(tokenizer), seq_len=64)
print("loaded")
print(json.dumps({"val_bpb": score.bpb, "val_tokens": score.tokens, "val_bytes": score.bytes}))
"""
"""A whole evaluation, through the installed package."""

ANSWERS = """
import argparse, hashlib, json
from pathlib import Path

ANSWERS = {answers}

def read_val(folder):
    shards = sorted(Path(folder).glob("*_val_*.bin"))
    return b"".join(path.read_bytes()[1024:] for path in shards)

def evaluate(tokens):
{cheat}
    return ANSWERS[hashlib.sha256(tokens).hexdigest()]

def train():
    loss.backward()
    optimizer.step()

parser = argparse.ArgumentParser()
parser.add_argument("--eval")
parser.add_argument("--data")
args = parser.parse_args()
if args.eval:
    print(json.dumps(evaluate(read_val(args.data))))
else:
    train()
"""
"""The same to the eye of the audit, in a tenth of a second: it knows what the model would say of
the split and of the tokens that the audit tries."""


@dataclass(frozen=True)
class Bundle:
    """A good submission and all that is known of it."""

    folder: Path
    data: Path
    score: Score
    answers: dict[str, dict[str, Any]]
    """What the model gives, by the hash of the tokens."""

    def copy(self, to: Path) -> Bundle:
        """The same in a folder of its own, to be broken."""
        shutil.copytree(self.folder, to / "submission")
        shutil.copytree(self.data, to / "data")
        return Bundle(to / "submission", to / "data", self.score, deepcopy(self.answers))

    def write_script(self, text: str) -> None:
        """Another script, its bytes claimed as they are."""
        (self.folder / "train_gpt.py").write_text(text)
        self.claim()

    def cheat(self, lines: str) -> None:
        """The quick script, with these lines in its evaluation."""
        indented = "\n".join("    " + line for line in lines.strip().splitlines())
        self.write_script(ANSWERS.format(answers=self.answers, cheat=indented or "    pass"))

    def claim(self, **values: Any) -> None:
        """submission.json, right but for `values`; None leaves a key out."""
        code = (self.folder / "train_gpt.py").stat().st_size
        artifact = (self.folder / "artifact.sg").stat().st_size
        claims = {
            "val_bpb": self.score.bpb,
            "val_bytes": self.score.bytes,
            "bytes_total": code + artifact,
            "bytes_code": code,
            "bytes_artifact": artifact,
            "seed": 1337,
            "train_seconds": 599.5,
            "seq_len": SEQ_LEN,
        } | values
        claims = {key: value for key, value in claims.items() if value is not None}
        (self.folder / "submission.json").write_text(json.dumps(claims))


def random_model(vocab_size: int, pattern: str = "s6 : attention") -> HybridLM:
    """Every parameter is noise: no projection is still zero and hides what comes before it."""
    config = ModelConfig(
        vocab_size=vocab_size,
        d_model=32,
        n_layers=2,
        pattern=pattern,
        mlp_width=48,
        embed_std=0.1,
        attention=AttentionConfig(n_heads=2, n_kv_heads=1),
        s6=S6Config(d_state=4, dt_rank=4),
    )
    model = HybridLM(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_bundle(folder: Path, vocab_size: int = 340) -> Bundle:
    """Writes dataset, artifact and submission."""
    data, submission = folder / "data", folder / "submission"
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size)
    held_out = (("val" if i % 4 == 0 else "train", text) for i, text in enumerate(DOCUMENTS))
    documents: Any = [(text, split) for split, text in held_out]
    build_dataset(documents, tokenizer, data, "tiny", workers=1)
    submission.mkdir()
    model = random_model(tokenizer.vocab_size)
    artifact = submission / "artifact.sg"
    save_artifact(
        artifact,
        {name: p.detach() for name, p in model.named_parameters()},
        model.parameter_groups(),
        model.config,
        tokenizer,
        "int8-brotli",
    )
    model, _ = load(artifact)
    split = open_split(data)
    probe = probe_tokens(split, artifact.read_bytes(), SEQ_LEN)
    table = byte_table(tokenizer)
    scores = [evaluate(model, tokens, table, seq_len=SEQ_LEN) for tokens in (split.tokens, probe)]
    answers = {
        hashlib.sha256(tokens.astype(np.uint16).tobytes()).hexdigest(): printed(score)
        for tokens, score in zip((split.tokens, probe), scores, strict=True)
    }
    (submission / "README.md").write_text("A small model.\n")
    (submission / "train.log").write_text("step:10 val_loss:2.1 train_time:599500ms\n")
    bundle = Bundle(submission, data, scores[0], answers)
    bundle.cheat("")
    return bundle


def printed(score: Score) -> dict[str, Any]:
    return {"val_bpb": score.bpb, "val_tokens": score.tokens, "val_bytes": score.bytes}
