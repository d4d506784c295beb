"""What has to work before a run is worth starting: its data, its model, one pass and its gradient.

Shapes: B sequences, L length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from scangolf.artifact.room import Room
from scangolf.config import RunConfig
from scangolf.data.shards import Dataset
from scangolf.device import compute_dtype, pick_device
from scangolf.errors import UserError
from scangolf.experiments.turns import Turns
from scangolf.model import HybridLM
from scangolf.score.evaluate import whole_sequences
from scangolf.submission.forms import code_bytes_at_most
from scangolf.train.optim import partition

SEQUENCES, LENGTH = 2, 32
"""Of the pass that tries a model out."""


def try_out(config: RunConfig, dataset: Callable[[str], Dataset]) -> Room:
    """Builds the model of a run and runs it forward and backward once, on the run's device.

    The model is as it will be but for the compiler; the batch is a few tokens. `dataset` opens a
    folder. Returns what is known of the artifact's size. Raises UserError for what cannot be run,
    and whatever the model itself raises.
    """
    _check_data(config, dataset(config.data))
    device = pick_device(config.device)
    with Turns.on(device):  # another run of a plan may be training there
        return _try_on(device, config)


def _try_on(device: torch.device, config: RunConfig) -> Room:
    model = HybridLM(config.model, config.seed).to(device)
    room = Room.of(model, config.artifact, code_bytes_at_most(config))
    room.check()
    model.compute_dtype = compute_dtype(device)
    partition(model)
    generator = torch.Generator().manual_seed(config.seed)
    length = min(LENGTH, config.batch.seq_len)
    tokens_BL = torch.randint(
        config.model.vocab_size, (SEQUENCES, length + 1), generator=generator
    ).to(device)
    loss = model(tokens_BL[:, :-1], tokens_BL[:, 1:]).mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not all(bool(tensor.isfinite().all()) for tensor in (loss, *gradients)):
        raise UserError("its loss or a gradient is not finite before the first step")
    return room


def _check_data(config: RunConfig, dataset: Dataset) -> None:
    vocab_size = dataset.tokenizer.vocab_size
    if vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size}, the tokenizer of {config.data} has "
            f"{vocab_size} tokens; set model.vocab_size = {vocab_size}, or other data"
        )
    whole_sequences(dataset.val_tokens(), config.batch.seq_len)
