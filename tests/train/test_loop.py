"""The training loop: resuming to the bit, a golden curve, stopping, diverging, the budget."""

import dataclasses
import itertools
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_cases import Silent, config, losses, made_up_dataset, trainer

from scangolf.config import BatchConfig, ScheduleConfig
from scangolf.data.shards import Dataset
from scangolf.errors import Diverged, Stopped, UserError
from scangolf.model import HybridLM
from scangolf.score.evaluate import Score
from scangolf.train import pace
from scangolf.train.loop import split_batch

GOLDEN = [5.7018, 4.8103, 4.3504, 4.333, 4.3869, 4.4097, 4.3353, 4.3469, 4.3281, 4.3566]
"""Every third loss of the first thirty steps."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return made_up_dataset()


@pytest.mark.parametrize("pattern", ["s6 : s6 : s6 : attention", "s6"])
def test_five_and_five_steps_are_ten(pattern: str, dataset: Dataset, tmp_path: Path) -> None:
    """Interrupted after five steps and resumed, a run continues to the same bits.

    A single block has no skips: their weights are a parameter without elements.
    """
    run = config(steps=10)
    blocks = pattern.count(":") + 1
    run = dataclasses.replace(
        run, model=dataclasses.replace(run.model, n_layers=blocks, pattern=pattern)
    )
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


def test_a_score_that_is_not_finite_is_not_recorded(dataset: Dataset, tmp_path: Path) -> None:
    """Weights can be finite and what they give on other text not."""
    poisoned = trainer(config(steps=3, evals=1), dataset, tmp_path)
    poisoned.evaluate = lambda model: Score(math.nan, 3, 4)
    with pytest.raises(Diverged, match="the validation loss is nan after step 2; "):
        poisoned.train()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_budget_in_seconds_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    run = config(seconds=1.5, schedule=ScheduleConfig(warmup=0.1, warmdown=0.5))
    timed = trainer(run, dataset, tmp_path)
    timed.train()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["tokens"] == 256 * timed.progress.step
    ends = [0.0, *(record["seconds"] for record in records)]
    for before, after, record in zip(ends, ends[1:], records, strict=False):
        # a step was decided on after the one before, and there was time then
        assert before < 1.5
        falls = [min(1.0, (1.5 - elapsed) / 0.75) for elapsed in (after, before)]
        rises = [elapsed / 0.15 for elapsed in (before, after)]
        assert min(falls[0], rises[0]) <= record["lr"] <= min(falls[1], rises[1])
    assert ends[-1] + (ends[-1] - ends[-2]) > 1.4  # another one as long would hardly have fitted


def test_evaluations_on_the_way(dataset: Dataset, tmp_path: Path) -> None:
    trainer(config(steps=9, evals=2), dataset, tmp_path).train()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val_bpb" in record] == [3, 6]


def test_telling_the_size_changes_nothing_and_takes_no_time(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told at two milliseconds of training and whenever the time has doubled since."""
    monkeypatch.setattr(pace, "FIRST_SIZE", 0.002)
    run = config(steps=12)
    plain = trainer(run, dataset, tmp_path / "plain")
    plain.train()

    told: list[tuple[int, float]] = []

    def tell_size(model: HybridLM) -> str:
        assert model is telling.model
        told.append((telling.progress.step, telling.progress.seconds))
        time.sleep(0.5)
        return f"size {len(told)}"

    telling = trainer(run, dataset, tmp_path / "telling", tell_size=tell_size)
    telling.train()
    assert losses(tmp_path / "telling") == losses(tmp_path / "plain")
    for p, q in zip(plain.model.parameters(), telling.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert isinstance(telling.display, Silent)
    assert telling.display.lines == [f"size {i + 1}" for i in range(len(told))]
    assert told[0][0] >= 1
    assert told[0][1] >= 0.002
    assert len(told) >= 2
    for (_, before), (_, after) in itertools.pairwise(told):
        assert after > 1.9 * before
    lines = (tmp_path / "telling" / "metrics.jsonl").read_text().splitlines()
    for before, after in itertools.pairwise(map(json.loads, lines)):
        seconds = after["seconds"] - before["seconds"]
        assert 256 / after["tokens_per_second"] == pytest.approx(seconds, rel=0.5, abs=0.01)
    assert telling.progress.seconds < 0.5 * len(told)


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


@pytest.mark.parametrize(
    ("tokens", "micro_tokens", "world", "parts"),
    [(524_288, 65_536, 8, (64, 1)), (524_288, 65_536, 2, (64, 4)), (6 * 1024, 2048, 3, (2, 1))],
)
def test_processes_have_equal_parts(
    tokens: int, micro_tokens: int, world: int, parts: tuple[int, int]
) -> None:
    assert split_batch(BatchConfig(tokens, 1024, micro_tokens), world) == parts


@pytest.mark.parametrize(("sequences", "world"), [(8, 3), (2, 4)])
def test_a_step_that_cannot_be_shared(sequences: int, world: int) -> None:
    wanted = rf"--batch.tokens {sequences * 64}: {sequences} sequences of 64.* {world} processes.*"
    with pytest.raises(UserError, match=rf"{wanted}multiple of {world * 64}, or"):
        split_batch(BatchConfig(sequences * 64, 64, 64), world)
