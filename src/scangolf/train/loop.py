"""The training loop: batches in, metrics and checkpoints out, within the budget.

On a GPU the host stays one step ahead of the device: a step's loss is read while the next one
runs, so nothing waits for the host, and the clock is wrong by a step at most.

Shapes: B sequences, L length.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from scangolf.config import BatchConfig, RunConfig
from scangolf.data.batches import Batches
from scangolf.data.shards import Dataset
from scangolf.device import compute_dtype, pick_device
from scangolf.errors import Diverged, Stopped
from scangolf.model import HybridLM
from scangolf.score.bpb import bits_per_byte, byte_table
from scangolf.score.evaluate import Score
from scangolf.train.checkpoint import (
    Progress,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from scangolf.train.optim import Optimiser
from scangolf.train.progress import Display
from scangolf.train.schedule import Budget, Clock, lr_factor

PRIMING_STEPS = 2
"""Steps that warm the compiler and the allocator before the clock starts; they leave no trace."""

SLOW = 1.0
"""Seconds from which on a step is waited for at once: the gap is nothing beside it, and whether
the next one fits the budget is then known better."""


@dataclass(frozen=True)
class Launched:
    """A step that the device was given; its loss has not been read yet."""

    step: int
    factor: float
    sums: Tensor
    """[2]: nats and bytes summed over the step's targets, on the host once `done`."""
    done: torch.cuda.Event | None


class Trainer:
    """One run in one folder, from its first step or from a checkpoint.

    `evaluate` scores the model on the validation split, for the evaluations during the run.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        folder: Path,
        display: Display,
        evaluate: Callable[[HybridLM], Score],
    ) -> None:
        self.config, self.folder, self.display, self.evaluate = config, folder, display, evaluate
        self.device = pick_device(config.device)
        self.budget = Budget(config.seconds, config.steps)
        self.clock = Clock()
        self.progress = Progress()
        self._settled_at = self._saved_at = self._step_seconds = 0.0
        self.micro_sequences, self.micro_steps = split_batch(config.batch)
        self.batches = Batches(
            dataset.train,
            seq_len=config.batch.seq_len,
            sequences=self.micro_sequences,
            order=config.batch.order,
            seed=config.seed,
            device=self.device,
        )
        self.table = byte_table(dataset.tokenizer).to(self.device)
        self.model = HybridLM(config.model, config.seed).to(self.device)
        self.model.compute_dtype = compute_dtype(self.device)
        self.optimiser = Optimiser(self.model, config.optim)
        self.mean_loss: Callable[[HybridLM, Tensor, Tensor], Tensor] = mean_loss
        if config.compile and self.device.type == "cuda":
            self.mean_loss = torch.compile(mean_loss, fullgraph=True, dynamic=False)
            self._prime()

    def resume(self) -> None:
        """Continues from the folder's newest checkpoint, or begins again where there is none yet.

        Metrics of later steps are dropped.
        """
        if has_checkpoint(self.folder / "checkpoint"):
            tensors, self.progress = load_checkpoint(self.folder / "checkpoint")
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(tensors[f"model.{name}"])
            self.optimiser.load_state(
                {k.removeprefix("optim."): v for k, v in tensors.items() if k.startswith("optim.")}
            )
            self.batches.load_state_dict({"position": self.progress.position})
            self.clock = Clock(self.progress.seconds)
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= self.progress.step]
        metrics.write_text("".join(line + "\n" for line in kept))

    def train(self) -> None:
        """Trains until the budget is used, or raises Stopped when a signal asks to stop.

        Either way the folder ends with a checkpoint. A loss that is not finite raises Diverged.
        """
        with (
            stop_requests() as stop,
            (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as self._metrics,
            self.batches,
        ):
            self._loop(stop)
            if self.progress.step > 0:
                self.save()
        if stop:
            self.display.say(f"stopped after step {self.progress.step:,}; --resume goes on from it")
            raise Stopped(stop[0])

    def save(self) -> None:
        """Writes a checkpoint of the last step that was read, or raises Diverged.

        A step can spoil the weights though its own loss was finite: only good ones are kept.
        """
        if not torch.stack([p.isfinite().all() for p in self.model.parameters()]).all():
            what = f"weights are not finite after step {self.progress.step}"
            raise Diverged(self._divergence(what))
        tensors = {f"model.{k}": v for k, v in self.model.named_parameters()}
        tensors |= {f"optim.{k}": v for k, v in self.optimiser.state().items()}
        save_checkpoint(self.folder / "checkpoint", tensors, self.progress)
        self._saved_at = self.clock.elapsed

    def _loop(self, stop: list[int]) -> None:
        under_way: Launched | None = None
        step = self.progress.step
        evals = self.config.evals + 1
        evals_done = int(self._share(step) * evals)
        self._saved_at = self.clock.elapsed
        self._settled_at = time.perf_counter()
        self.clock.start()
        while not stop and self._fits(step + 1):
            launched = self._launch(step + 1)
            step += 1
            if under_way is not None:
                self._settle(under_way)
            under_way = launched
            wants_eval = evals_done < int(self._share(step) * evals) < evals
            wants_save = self.clock.elapsed - self._saved_at >= self.config.checkpoint_seconds
            if launched.done is None or self._step_seconds > SLOW or wants_eval or wants_save:
                self._settle(launched)
                under_way = None
            if wants_save:
                self.save()
            if wants_eval:
                evals_done += 1
                self._evaluate()
        if under_way is not None:
            self._settle(under_way)
        self.clock.pause()

    def _elapsed(self, step: int) -> float:
        """Seconds on the clock when `step` steps are done, estimated if some are under way."""
        return self.clock.elapsed + (step - self.progress.step) * self._step_seconds

    def _share(self, step: int) -> float:
        return self.budget.share(step, self._elapsed(step))

    def _fits(self, step: int) -> bool:
        """Whether a step would end within the budget if it takes as long as the last one."""
        if self.config.steps is not None:
            return step <= self.config.steps
        return self._elapsed(step) < self.config.seconds

    def _launch(self, step: int) -> Launched:
        before = step - 1
        factor = lr_factor(self.config.schedule, self.budget, before, self._elapsed(before))
        sums = torch.zeros(2, device=self.device)
        for _ in range(self.micro_steps):
            self._accumulate(*next(self.batches), sums)
        self.optimiser.step(factor)
        if self.device.type != "cuda":
            return Launched(step, factor, sums.cpu(), None)
        on_host = torch.empty(2, pin_memory=True)
        on_host.copy_(sums, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Launched(step, factor, on_host, done)

    def _accumulate(self, x_BL: Tensor, y_BL: Tensor, sums: Tensor) -> None:
        """One micro-batch: adds to the gradients, and its nats and bytes to `sums`."""
        loss = self.mean_loss(self.model, x_BL, y_BL)
        (loss / self.micro_steps).backward()
        sums[0] += loss.detach() * y_BL.numel()
        sums[1] += self.table.count(x_BL, y_BL).sum()

    def _settle(self, launched: Launched) -> None:
        """Waits for a step, counts and records it."""
        if launched.done is not None:
            launched.done.synchronize()
        now = time.perf_counter()
        self._step_seconds, self._settled_at = now - self._settled_at, now
        nats, n_bytes = launched.sums.tolist()
        tokens = self.config.batch.tokens
        loss = nats / tokens
        if not math.isfinite(loss):
            raise Diverged(self._divergence(f"the loss is {loss} at step {launched.step}"))
        seconds = self.clock.elapsed
        self.progress = Progress(
            step=launched.step,
            tokens=self.progress.tokens + tokens,
            seconds=seconds,
            position=launched.step * self.micro_steps * self.micro_sequences,
        )
        record = {
            "step": launched.step,
            "tokens": self.progress.tokens,
            "seconds": seconds,
            "share": self.budget.share(launched.step, seconds),
            "loss": loss,
            "train_bpb": bits_per_byte(nats, int(n_bytes)),
            "lr": launched.factor,
            "tokens_per_second": tokens / self._step_seconds,
        }
        self._record(record)
        pace = seconds / launched.step
        left = self.budget.steps_left(launched.step, seconds) * pace
        self.display.update(record, left)

    def _evaluate(self) -> None:
        self.clock.pause()
        score = self.evaluate(self.model)
        share = self.budget.share(self.progress.step, self.progress.seconds)
        self._record(evaluation_record(self.progress, share, score))
        self.display.say(f"validation after step {self.progress.step:,}: {score.bpb:.4f} bits/byte")
        self._settled_at = time.perf_counter()
        self.clock.start()

    def _record(self, record: dict[str, Any]) -> None:
        write_record(self._metrics, record)

    def _prime(self) -> None:
        """Compiles all that a step runs, then puts model, optimiser and data back.

        It takes real batches: for tensors of other strides the compiler would start again.
        """
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        sums = torch.zeros(2, device=self.device)
        for _ in range(PRIMING_STEPS):
            for _ in range(min(2, self.micro_steps)):  # the second one adds to the gradients
                self._accumulate(*next(self.batches), sums)
            self.optimiser.step(0.0)
        self.batches.load_state_dict({"position": 0})
        self.optimiser.reset()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(before[name])
        torch.cuda.synchronize()

    def _divergence(self, what: str) -> str:
        folder = self.folder / "checkpoint"
        good = "there is no checkpoint yet"
        if has_checkpoint(folder):
            good = f"the last good checkpoint is in {folder}"
        return (
            f"{what}; {good}. Likely a learning rate is too high "
            "(try a third of --optim.matrix-lr and --optim.dynamics-lr), or the warm-up too short "
            "(--schedule.warmup 0.1)"
        )


def mean_loss(model: HybridLM, x_BL: Tensor, y_BL: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token."""
    return model(x_BL, y_BL).mean()


def split_batch(batch: BatchConfig) -> tuple[int, int]:
    """Sequences of a micro-batch, and micro-batches of a step: equal parts within micro_tokens."""
    sequences = batch.tokens // batch.seq_len
    most = min(sequences, batch.micro_tokens // batch.seq_len)
    micro = next(n for n in range(most, 0, -1) if sequences % n == 0)
    return micro, sequences // micro


def evaluation_record(progress: Progress, share: float, score: Score) -> dict[str, Any]:
    """The line of metrics.jsonl that an evaluation leaves."""
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "share": share,
        "val_loss": score.loss,
        "val_bpb": score.bpb,
    }


def write_record(metrics: TextIO, record: dict[str, Any]) -> None:
    """Appends one line to metrics.jsonl, at once on disk for whoever watches."""
    metrics.write(json.dumps(record) + "\n")
    metrics.flush()


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM puts its number in; a second Ctrl-C kills."""
    stop: list[int] = []

    def request(number: int, _frame: object) -> None:
        stop.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
