"""From a trained model to its artifact on disk, by any scheme."""

from __future__ import annotations

from pathlib import Path

from scangolf.artifact.calibrate import calibrate, calibration_batches
from scangolf.artifact.codec import save_artifact, write
from scangolf.artifact.mixed import SCHEME, Mixed, fit
from scangolf.data.shards import Dataset
from scangolf.model import HybridLM


def save_model(
    path: Path, model: HybridLM, dataset: Dataset, scheme: str, *, seq_len: int, max_bytes: int
) -> Mixed | None:
    """Writes the artifact; what it came to for scheme mixed-rans, else None.

    Only mixed-rans calibrates, on the training split in sequences of `seq_len`, and keeps to
    `max_bytes`. Raises UserError for weights that are not finite, for `max_bytes` that no artifact
    of this model keeps to, and where the file cannot be written.
    """
    state = {name: p.detach() for name, p in model.named_parameters()}
    groups, tokenizer = model.parameter_groups(), dataset.tokenizer
    if scheme != SCHEME:
        save_artifact(path, state, groups, model.config, tokenizer, scheme)
        return None
    batches = calibration_batches(dataset.train, seq_len, model.skip_weights.device)
    curvature = calibrate(model, batches)
    mixed = fit(state, groups, curvature, model.config, tokenizer, max_bytes)
    write(path, mixed.content)
    return mixed
