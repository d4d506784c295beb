"""From a trained model to its artifact on disk, by any scheme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scangolf.artifact.calibrate import calibrate, calibration_batches
from scangolf.artifact.codec import save_artifact, write
from scangolf.artifact.mixed import SCHEME, Mixed, fit
from scangolf.data.shards import Dataset
from scangolf.model import HybridLM


def save_model(
    path: Path, model: HybridLM, dataset: Dataset, scheme: str, *, seq_len: int, max_bytes: int
) -> None:
    """Writes the artifact.

    Only mixed-rans calibrates, on the training split in sequences of `seq_len`, and keeps to
    `max_bytes`. Raises UserError for weights that are not finite, for `max_bytes` that no artifact
    of this model keeps to, and where the file cannot be written.
    """
    if scheme == SCHEME:
        (mixed,) = fit_model(model, dataset, seq_len=seq_len, sizes=[max_bytes])
        write(path, mixed.content)
        return
    state = {name: p.detach() for name, p in model.named_parameters()}
    groups = model.parameter_groups()
    save_artifact(path, state, groups, model.config, dataset.tokenizer, scheme)


def fit_model(
    model: HybridLM, dataset: Dataset, *, seq_len: int, sizes: Sequence[int]
) -> list[Mixed]:
    """An artifact by scheme mixed-rans for each size, of at most so many bytes; calibrated once."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    groups, tokenizer = model.parameter_groups(), dataset.tokenizer
    batches = calibration_batches(dataset.train, seq_len, model.skip_weights.device)
    curvature = calibrate(model, batches)
    return [fit(state, groups, curvature, model.config, tokenizer, size) for size in sizes]
