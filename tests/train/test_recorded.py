"""Recorded passes give the losses and gradients of passes that are launched kernel by kernel."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_cases import config, made_up_dataset, trainer

from scangolf.data.batches import Batches
from scangolf.model import HybridLM
from scangolf.train.gradients import Gradients
from scangolf.train.optim import Optimiser
from scangolf.train.world import ALONE

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PATTERN = "s6, ssd, gdn, attention"


def model_and_batches(micro_steps: int) -> tuple[HybridLM, Batches]:
    run = config()
    model = HybridLM(dataclasses.replace(run.model, pattern=PATTERN), seed=3).cuda()
    with torch.no_grad():
        for parameter in model.parameters():  # zero output projections would hide gradients
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.compute_dtype = torch.bfloat16
    sequences = 12 // micro_steps
    shards = made_up_dataset().train
    batches = Batches(
        shards, seq_len=33, sequences=sequences, order="window", seed=1, device="cuda"
    )
    return model, batches


def test_the_first_pass_of_a_step_begins_its_gradients() -> None:
    """And those after it add to them, whatever a recording is."""
    model = HybridLM(config().model, seed=3)
    replayed: list[str] = []

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def replay(self, x_BL: torch.Tensor, y_BL: torch.Tensor) -> torch.Tensor:
            replayed.append(self.name)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            return torch.zeros(())

    for micro_steps, passes in ((1, ["first"]), (3, ["first", "later", "later"])):
        optimiser = Optimiser(model, config().optim)
        gradients: Any = Gradients(model, micro_steps, ALONE, compiled=False)
        gradients.recorded = tuple(Noted(name) for name in dict.fromkeys(passes))
        replayed.clear()
        for _ in range(2):
            for i in range(micro_steps):
                gradients.add(torch.zeros(1, 1), torch.zeros(1, 1), last=i == micro_steps - 1)
            optimiser.step(0.0)
        assert replayed == 2 * passes


@needs_a_gpu
@pytest.mark.parametrize("micro_steps", [1, 2, 3])
def test_steps_are_those_of_passes_that_are_not_recorded(micro_steps: int) -> None:
    torch.manual_seed(0)
    model, batches = model_and_batches(micro_steps)
    plain = Gradients(model, micro_steps, ALONE, compiled=False)
    recorded = Gradients(model, micro_steps, ALONE, compiled=False)
    with batches:
        for step in range(4):
            passes = [next(batches) for _ in range(micro_steps)]
            found = []
            for gradients in (plain, recorded):
                losses = [
                    gradients.add(*batch, last=i == micro_steps - 1)
                    for i, batch in enumerate(passes)
                ]
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                found.append((torch.stack(losses), [grad.double().clone() for grad in grads]))
                for parameter in model.parameters():
                    parameter.grad = None
            (losses, grads), (recorded_losses, recorded_grads) = found
            assert len(set(losses.tolist())) == micro_steps
            torch.testing.assert_close(recorded_losses, losses, rtol=1e-6, atol=0)
            for grad, other in zip(grads, recorded_grads, strict=True):
                # Some kernels add up in an order of their own each time, before they round to bf16.
                assert (grad - other).norm() <= 2e-3 * grad.norm()
            with torch.no_grad():
                for parameter in model.parameters():  # weights change, their addresses do not
                    parameter.mul_(1.01)
            if step == 0:
                recorded.record(*next(batches))
    assert len(recorded.recorded) == min(micro_steps, 2)


@needs_a_gpu
def test_a_compiled_run_is_recorded_and_leaves_no_trace_of_it(tmp_path: Path) -> None:
    runs = [dataclasses.replace(config(), device="cuda", compile=c) for c in (True, False)]
    trainers = [trainer(run, made_up_dataset(), tmp_path) for run in runs]
    assert [len(t.gradients.recorded) for t in trainers] == [2, 0]
    for one, other in zip(*(t.model.parameters() for t in trainers), strict=True):
        assert torch.equal(one, other)
    batches = [next(t.batches) for t in trainers]
    assert torch.equal(batches[0][0], batches[1][0])
    losses = [
        t.gradients.add(*batch, last=True) for t, batch in zip(trainers, batches, strict=True)
    ]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
    for t in trainers:
        t.batches.close()
