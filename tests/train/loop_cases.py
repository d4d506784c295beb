"""A small run on a made-up language, for tests of the training loop."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scangolf.config import BatchConfig, RunConfig
from scangolf.data.shards import Dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.model import HybridLM
from scangolf.recipes import tiny
from scangolf.score.evaluate import Score
from scangolf.train.loop import Trainer
from scangolf.train.world import ALONE, World


class Silent:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, record: dict[str, Any], seconds_left: float) -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)

    def close(self) -> None: ...


def made_up_dataset() -> Dataset:
    """Tokens of a made-up language in which a token often follows from the two before it."""
    words = [f"{a}{b} {b}{a}" for a in "abcdefghij" for b in "klmnopqrst"]
    tokenizer = train_tokenizer(words * 3, 300)
    generator = np.random.default_rng(7)
    tokens = generator.integers(4, 300, 20_000)
    for t in range(2, len(tokens)):
        if tokens[t] % 4:
            tokens[t] = 4 + (3 * tokens[t - 1] + tokens[t - 2]) % 296
    shards: Any = (tokens[:18_000].astype(np.uint16),), (tokens[18_000:].astype(np.uint16),)
    return Dataset(Path(), tokenizer, *shards)


def config(**changes: Any) -> RunConfig:
    base = tiny()
    return dataclasses.replace(
        base,
        device="cpu",
        model=dataclasses.replace(base.model, vocab_size=300, d_model=32, mlp_width=64),
        batch=BatchConfig(tokens=256, seq_len=32, micro_tokens=128),
        **({"evals": 0} | changes),
    )


def trainer(
    run: RunConfig,
    dataset: Dataset,
    folder: Path,
    world: World = ALONE,
    tell_size: Callable[[HybridLM], str] | None = None,
) -> Trainer:
    folder.mkdir(exist_ok=True)
    score = Score(1.0, 3, 4)
    return Trainer(run, dataset, folder, Silent(), lambda model: score, world, tell_size)


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]
