"""What only a run's weights and data can tell of it: the content of analysis.json.

The report draws it, and reads nothing but the run folder. Everything is about the artifact as it
was read back from disk, on text of the validation split. Blocks count from 0.

Shapes: B sequences, L length, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scangolf.analysis.dynamics import spectrum, watched_scans
from scangolf.analysis.tensors import stored_tensors
from scangolf.analysis.text import passage, surprisal
from scangolf.artifact.codec import Artifact
from scangolf.data.shards import Dataset
from scangolf.model import Block, HybridLM
from scangolf.score.bpb import byte_table
from scangolf.score.evaluate import sequences_at_once, whole_sequences

TARGETS = 2**18
"""Targets that loss by position and dt are taken over, at most."""
PASSAGE_TOKENS = 256
GATE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of a gate's values over the channels of the residual stream."""


def analyse(
    artifact: Artifact,
    trained: HybridLM,
    reloaded: HybridLM,
    dataset: Dataset,
    *,
    seq_len: int,
    steps: int,
    sample: str,
) -> dict[str, Any]:
    """All of it as plain JSON values, finite numbers only; takes seconds, on the model's device.

    `trained` is what the artifact was made of, `reloaded` what it holds. `steps` tells a
    reader which end of a resumed run it belongs to, `sample` is a text the artifact generated.
    """
    tokenizer, kinds = dataset.tokenizer, reloaded.config.layers
    with watched_scans(reloaded) as scans:
        positions = loss_by_position(reloaded, dataset, seq_len)
    opening = passage(dataset.val_tokens(), PASSAGE_TOKENS)
    return {
        "steps": steps,
        "peak_memory_bytes": _peak_memory(reloaded.skip_weights.device),
        "scans": [spectrum(i, kinds[i], scan) for i, scan in scans.items()],
        "gates": list(gates(reloaded)),
        "positions": positions,
        "tokenizer_bytes": len(tokenizer.model_bytes),
        "tensors": stored_tensors(artifact, dict(trained.named_parameters())),
        "passage": surprisal(reloaded, tokenizer, opening),
        "sample": surprisal(reloaded, tokenizer, tokenizer.encode(sample)),
    }


@torch.inference_mode()
def loss_by_position(model: HybridLM, dataset: Dataset, seq_len: int) -> dict[str, Any]:
    """Mean nats and bytes of a target at each position of a sequence, as mode `plain` scores them.

    Over the whole split where it has no more than TARGETS, else over sequences spread evenly.
    """
    tokens = dataset.val_tokens()
    count = whole_sequences(tokens, seq_len)
    chosen = min(count, max(1, TARGETS // seq_len))
    starts = np.arange(chosen) * count // chosen * seq_len
    table = byte_table(dataset.tokenizer)
    device = model.skip_weights.device
    at_once = sequences_at_once(model, seq_len)
    nats_L, bytes_L = np.zeros(seq_len), np.zeros(seq_len)
    for i in range(0, chosen, at_once):
        columns = starts[i : i + at_once, None] + np.arange(seq_len + 1)
        tokens_BL = tokens[columns].astype(np.int64)
        x_BL, y_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]
        losses_BL = model(*(torch.from_numpy(t).to(device) for t in (x_BL, y_BL)))
        nats_L += losses_BL.cpu().double().sum(0).numpy()
        bytes_L += table.count(x_BL, y_BL).sum(0)
    return {
        "targets": chosen * seq_len,
        "split_targets": count * seq_len,
        "nats": (nats_L / chosen).tolist(),
        "bytes": (bytes_L / chosen).tolist(),
    }


def gates(model: HybridLM) -> Iterator[dict[str, Any]]:
    """Quantiles over channels of what scales the stream in each block, and what skips to it."""
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        values = {
            "resid_mix_x": block.resid_mix[0],
            "resid_mix_x0": block.resid_mix[1],
            "mixer_gain": block.mixer.out_gain,
            "mlp_gain": block.mlp.down.gain,
        }
        for name, value_D in values.items():
            yield {"gate": name, "block": i, "quantiles": _quantiles(value_D)}
    for j, value_D in enumerate(model.skip_weights):
        source, block = model.n_skips - 1 - j, model.n_skips + j
        yield {
            "gate": "skip_weights",
            "block": block,
            "source": source,
            "quantiles": _quantiles(value_D),
        }


def _peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held in tensors on a GPU; None where nobody counts."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _quantiles(value_D: Tensor) -> list[float]:
    return np.quantile(value_D.detach().cpu().double().numpy(), GATE_QUANTILES).tolist()
