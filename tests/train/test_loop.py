"""The training loop: resuming to the bit, a golden curve, stopping, diverging, the budget."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scangolf.config import BatchConfig, RunConfig, ScheduleConfig, tiny
from scangolf.data.shards import Dataset
from scangolf.data.tokenizer import Tokenizer, train_tokenizer
from scangolf.errors import Diverged, Stopped
from scangolf.score.evaluate import Score
from scangolf.train.loop import Trainer, split_batch

GOLDEN = [5.7018, 4.8103, 4.3504, 4.333, 4.3869, 4.4097, 4.3353, 4.3469, 4.3281, 4.3566]
"""Every third loss of the first thirty steps."""


class Silent:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, record: dict[str, Any], seconds_left: float) -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = [f"{a}{b} {b}{a}" for a in "abcdefghij" for b in "klmnopqrst"]
    return train_tokenizer(words * 3, 300)


@pytest.fixture(scope="module")
def dataset(tokenizer: Tokenizer) -> Dataset:
    """Tokens of a made-up language in which a token often follows from the two before it."""
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


def trainer(run: RunConfig, dataset: Dataset, folder: Path) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(run, dataset, folder, Silent(), lambda model: Score(1.0, 2.0, 3, 4))


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_five_and_five_steps_are_ten(dataset: Dataset, tmp_path: Path) -> None:
    """Interrupted after five steps and resumed, a run continues to the same bits."""
    run = config(steps=10)
    whole = trainer(run, dataset, tmp_path / "whole")
    whole.train()

    folder = tmp_path / "parts"
    first = trainer(run, dataset, folder)
    settle = first._settle

    def interrupt_after_five(launched: Any) -> None:
        settle(launched)
        if launched.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    first._settle = interrupt_after_five  # type: ignore[method-assign]
    with pytest.raises(Stopped) as stopped:
        first.train()
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert first.progress.step == 5
    # A step that was recorded after the checkpoint, and a line cut short, are dropped.
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "loss": 99.0}\n{"step": 7, "lo')

    second = trainer(run, dataset, folder)
    second.resume()
    second.train()
    assert len(losses(folder)) == 10
    assert losses(folder) == losses(tmp_path / "whole")
    for (name, p), q in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert second.progress.position == 10 * 256 // 32


def test_golden_curve_of_tiny(dataset: Dataset, tmp_path: Path) -> None:
    """Losses of a seeded run, written down once: a change that means to change nothing keeps them.

    The tolerance is for other processors and versions of torch, whose sums round differently.
    """
    trainer(config(steps=30), dataset, tmp_path).train()
    found = losses(tmp_path)
    assert found[0] == pytest.approx(np.log(300), abs=0.3)
    assert found[::3] == pytest.approx(GOLDEN, abs=0.02)


def test_gradient_accumulation_is_one_large_batch(dataset: Dataset, tmp_path: Path) -> None:
    run = config(steps=4)
    parts, one = tmp_path / "parts", tmp_path / "one"
    trainer(run, dataset, parts).train()
    whole = dataclasses.replace(run, batch=dataclasses.replace(run.batch, micro_tokens=256))
    trainer(whole, dataset, one).train()
    assert losses(parts) == pytest.approx(losses(one), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    run = config(steps=6, checkpoint_seconds=1e-9)
    poisoned = trainer(run, dataset, tmp_path)
    settle = poisoned._settle

    def poison(launched: Any) -> None:
        settle(launched)
        if launched.step == 2:
            with torch.no_grad():
                poisoned.model.embedding.weight[7] = float("nan")

    poisoned._settle = poison  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=r"not finite after step 2.*the last good.*matrix-lr"):
        poisoned.train()
    resumed = trainer(run, dataset, tmp_path)
    resumed.resume()
    assert resumed.progress.step == 1
    assert all(p.isfinite().all() for p in resumed.model.parameters())


def test_without_a_checkpoint_the_loss_itself_tells(dataset: Dataset, tmp_path: Path) -> None:
    poisoned = trainer(config(steps=6), dataset, tmp_path)
    with torch.no_grad():
        poisoned.model.embedding.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="the loss is nan at step 1; there is no checkpoint yet"):
        poisoned.train()


def test_a_budget_in_seconds_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    run = config(seconds=1.5, schedule=ScheduleConfig(warmup=0.1, warmdown=0.5))
    timed = trainer(run, dataset, tmp_path)
    timed.train()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert timed.progress.step > 3
    assert 1.0 < records[-1]["seconds"] < 1.8
    assert records[-1]["lr"] < 0.3
    assert max(record["lr"] for record in records) > 0.9
    assert records[-1]["tokens"] == 256 * timed.progress.step


def test_evaluations_on_the_way(dataset: Dataset, tmp_path: Path) -> None:
    trainer(config(steps=9, evals=2), dataset, tmp_path).train()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val_bpb" in record] == [3, 6]


@pytest.mark.parametrize(
    ("tokens", "seq_len", "micro_tokens", "parts"),
    [
        (524_288, 1024, 131_072, (128, 4)),
        (524_288, 1024, 10**9, (512, 1)),
        (7 * 64, 64, 3 * 64, (1, 7)),
        (6 * 64, 64, 5 * 64, (3, 2)),
        (64, 64, 64, (1, 1)),
    ],
)
def test_micro_batches_are_equal_parts(
    tokens: int, seq_len: int, micro_tokens: int, parts: tuple[int, int]
) -> None:
    assert split_batch(BatchConfig(tokens, seq_len, micro_tokens)) == parts
