"""The training loop: batches in, metrics and checkpoints out, within the budget.

On a GPU the host stays one step ahead of the device: a step's loss is read while the next one
runs, so nothing waits for the host, and the clock is wrong by a step at most.

Several processes make the same steps, each on its share of a step's sequences. The first one looks
at the clock and decides, the others follow; it alone writes and shows anything.

Shapes: B sequences, L length.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scangolf.config import BatchConfig, RunConfig
from scangolf.data.batches import Batches
from scangolf.data.shards import Dataset
from scangolf.device import compute_dtype
from scangolf.errors import Diverged, Stopped, UserError
from scangolf.model import HybridLM
from scangolf.score.bpb import bits_per_byte, byte_table
from scangolf.score.evaluate import Score
from scangolf.train.checkpoint import (
    HOW_TO_GO_ON,
    Progress,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from scangolf.train.gradients import Gradients
from scangolf.train.metrics import drop_later, evaluation_record, write_record
from scangolf.train.optim import Optimiser
from scangolf.train.pace import Pace
from scangolf.train.progress import Display
from scangolf.train.signals import stop_requests
from scangolf.train.world import ALONE, World


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
    `tell_size` words how large the model's artifact would be by now, in the first process alone.
    Every process of `world` makes its own Trainer and calls the same methods.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        folder: Path,
        display: Display,
        evaluate: Callable[[HybridLM], Score],
        world: World = ALONE,
        tell_size: Callable[[HybridLM], str] | None = None,
    ) -> None:
        self.config, self.folder, self.display, self.evaluate = config, folder, display, evaluate
        self.world, self.tell_size = world, tell_size
        self.device = world.device(config.device)
        self.progress = Progress()
        self.pace = Pace(config, world, tells_size=tell_size is not None)
        self.micro_sequences, self.micro_steps = split_batch(config.batch, world.size)
        self.batches = Batches(
            dataset.train,
            seq_len=config.batch.seq_len,
            sequences=self.micro_sequences,
            order=config.batch.order,
            seed=config.seed,
            rank=world.rank,
            world=world.size,
            device=self.device,
        )
        self.text = dataset.fingerprints()
        self.table = byte_table(dataset.tokenizer).to(self.device)
        self.model = HybridLM(config.model, config.seed).to(self.device)
        world.copy_first_(self.model.parameters())  # other machines may draw others
        self.model.compute_dtype = compute_dtype(self.device)
        self.optimiser = Optimiser(self.model, config.optim, world)
        compiled = config.compile and self.device.type == "cuda"
        self.gradients = Gradients(self.model, self.micro_steps, world, compiled=compiled)
        if compiled:
            self._prime()

    def resume(self) -> None:
        """Continues from the folder's newest checkpoint, or begins again where there is none yet.

        Metrics of later steps are dropped.
        """
        folder = self.folder / "checkpoint"
        saved = self.world.first(
            lambda: load_checkpoint(folder, self.text) if has_checkpoint(folder) else None
        )
        if saved is not None:
            tensors, self.progress = saved
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(tensors[f"model.{name}"])
            self.optimiser.load_state(
                {k.removeprefix("optim."): v for k, v in tensors.items() if k.startswith("optim.")}
            )
            self.batches.seek(self.progress.position)
            self.pace.resume(self.progress)
        self.world.first(lambda: drop_later(self.folder / "metrics.jsonl", self.progress.step))

    def train(self) -> None:
        """Trains until the budget is used, or raises Stopped when a signal asks to stop.

        Either way the folder ends with a checkpoint. A loss that is not finite raises Diverged.
        """
        metrics = self.folder / "metrics.jsonl" if self.world.is_first else Path(os.devnull)
        with (
            stop_requests() as stop,
            metrics.open("a", encoding="utf-8") as self._metrics,
            self.batches,
        ):
            self._loop(stop)
            if self.progress.step > 0:
                self.save()
            (signal,) = self.world.largest([stop[0] if stop else 0])
        if signal:
            self.display.say(f"stopped after step {self.progress.step:,}; {HOW_TO_GO_ON}")
            raise Stopped(int(signal))

    def score(self) -> Score:
        """That of the model as it is, on the validation split; Diverged where it is not finite."""
        score = self.evaluate(self.model)
        if not math.isfinite(score.loss):
            what = f"the validation loss is {score.loss} after step {self.progress.step}"
            raise Diverged(self._divergence(what))
        return score

    def save(self) -> None:
        """Writes a checkpoint of the last step that was read, or raises Diverged.

        A step can spoil the weights though its own loss was finite: only good ones are kept.
        """
        if not torch.stack([p.isfinite().all() for p in self.model.parameters()]).all():
            what = f"weights are not finite after step {self.progress.step}"
            raise Diverged(self._divergence(what))
        tensors = {f"model.{k}": v for k, v in self.model.named_parameters()}
        tensors |= {f"optim.{k}": v for k, v in self.optimiser.state().items()}
        self.world.first(
            lambda: save_checkpoint(self.folder / "checkpoint", tensors, self.progress, self.text)
        )
        self.pace.saved()

    def _loop(self, stop: list[int]) -> None:
        under_way: Launched | None = None
        step = self.progress.step
        self.pace.start()
        while True:
            decision = self.pace.decide(step, stop)
            if under_way is not None and (decision.interrupts or not decision.step):
                self._settle(under_way)
                under_way = None
            if decision.save:
                self.save()
            if decision.evaluate:
                self._evaluate()
            if decision.size:
                self._tell_size()
            if not decision.step:
                break
            step += 1
            launched = self._launch(step, decision.factor)
            if under_way is not None:
                self._settle(under_way)
            under_way = launched
            if launched.done is None or decision.wait:
                self._settle(launched)
                under_way = None
        self.pace.clock.pause()

    def _launch(self, step: int, factor: float) -> Launched:
        sums = torch.zeros(2, device=self.device)
        for micro_step in range(self.micro_steps):
            last = micro_step == self.micro_steps - 1
            self._accumulate(*next(self.batches), sums, last=last)
        self.world.sum_(sums)
        self.optimiser.step(factor)
        if self.device.type != "cuda":
            return Launched(step, factor, sums.cpu(), None)
        on_host = torch.empty(2, pin_memory=True)
        on_host.copy_(sums, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Launched(step, factor, on_host, done)

    def _accumulate(self, x_BL: Tensor, y_BL: Tensor, sums: Tensor, *, last: bool) -> None:
        """One micro-batch: adds to the gradients, and its nats and bytes to `sums`."""
        loss = self.gradients.add(x_BL, y_BL, last=last)
        sums[0] += loss * y_BL.numel()
        sums[1] += self.table.count(x_BL, y_BL).sum()

    def _settle(self, launched: Launched) -> None:
        """Waits for a step, counts and records it."""
        if launched.done is not None:
            launched.done.synchronize()
        self.pace.settle(launched.step)
        nats, n_bytes = launched.sums.tolist()
        tokens = self.config.batch.tokens
        loss = nats / tokens
        if not math.isfinite(loss):
            raise Diverged(self._divergence(f"the loss is {loss} at step {launched.step}"))
        seconds = self.pace.clock.elapsed
        self.progress = Progress(
            step=launched.step,
            tokens=self.progress.tokens + tokens,
            seconds=seconds,
            position=launched.step * (tokens // self.config.batch.seq_len),
        )
        record = {
            "step": launched.step,
            "tokens": self.progress.tokens,
            "seconds": seconds,
            "share": self.pace.budget.share(launched.step, seconds),
            "loss": loss,
            "train_bpb": bits_per_byte(nats, int(n_bytes)),
            "lr": launched.factor,
            "tokens_per_second": tokens / self.pace.step_seconds,
        }
        write_record(self._metrics, record)
        left = self.pace.budget.steps_left(launched.step, seconds) * seconds / launched.step
        self.display.update(record, left)

    def _evaluate(self) -> None:
        with self.pace.paused():
            score = self.score()
            self.pace.evaluated()
            share = self.pace.budget.share(self.progress.step, self.progress.seconds)
            write_record(self._metrics, evaluation_record(self.progress, share, score))
            step = f"{self.progress.step:,}"
            self.display.say(f"validation after step {step}: {score.bpb:.4f} bits/byte")

    def _tell_size(self) -> None:
        with self.pace.paused():
            if self.world.is_first and self.tell_size is not None:
                self.display.say(self.tell_size(self.model))
            self.pace.size_told()

    def _prime(self) -> None:
        """Compiles and records all that a step runs, then puts model, optimiser and data back.

        It takes real batches: for tensors of other strides the compiler would start again.
        """
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._priming_step()
        self.gradients.record(*next(self.batches))
        self._priming_step()  # as it will be replayed
        self.batches.seek(0)
        self.optimiser.reset()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(before[name])
        torch.cuda.synchronize()

    def _priming_step(self) -> None:
        """A step that changes nothing but gradients and the optimiser's state."""
        sums = torch.zeros(2, device=self.device)
        self._accumulate(*next(self.batches), sums, last=self.micro_steps == 1)
        if self.micro_steps > 1:  # the second one adds to the gradients
            self._accumulate(*next(self.batches), sums, last=True)
        self.optimiser.step(0.0)

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


def split_batch(batch: BatchConfig, world: int = 1) -> tuple[int, int]:
    """Sequences of a micro-batch of each process, and micro-batches of a step.

    They are equal parts within micro_tokens; what `world` processes cannot share is a UserError.
    """
    sequences, left_over = divmod(batch.tokens // batch.seq_len, world)
    if left_over or not sequences:
        raise UserError(
            f"--batch.tokens {batch.tokens}: {batch.tokens // batch.seq_len} sequences of "
            f"{batch.seq_len} cannot be shared by {world} processes; needs a multiple of "
            f"{world * batch.seq_len}, or another --nproc-per-node"
        )
    most = min(sequences, batch.micro_tokens // batch.seq_len)
    micro = next(n for n in range(most, 0, -1) if sequences % n == 0)
    return micro, sequences // micro
