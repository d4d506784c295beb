"""A run's weights rounded once more, into other sizes: each size's artifact, and its score.

The artifacts are scored as they were read back from disk, beside the model they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scangolf.artifact.codec import MAGIC, write
from scangolf.artifact.mixed import Mixed
from scangolf.artifact.save import fit_model
from scangolf.config import RunConfig
from scangolf.data.shards import Dataset, open_dataset
from scangolf.device import compute_dtype, pick_device
from scangolf.errors import UserError
from scangolf.model import HybridLM
from scangolf.run import read_config, score_artifact
from scangolf.score.bpb import byte_table
from scangolf.score.evaluate import evaluate
from scangolf.train.checkpoint import load_checkpoint


@dataclass(frozen=True)
class Point:
    """One size."""

    artifact: str
    artifact_bytes: int
    bits_per_weight: float
    """Of the whole file, over all the weights."""
    predicted_loss: float
    """Nats a token that rounding should cost."""
    val_loss: float
    val_bpb: float
    lost_bpb: float
    """Bits a byte more than the model before rounding."""


@dataclass(frozen=True)
class Curve:
    run: str
    parameters: int
    val_loss: float
    """Nats a token of the model before rounding."""
    val_bpb: float
    points: tuple[Point, ...]
    """From the smallest up."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantize_run(
    folder: Path,
    out: Path,
    *,
    max_bytes: int | None,
    code_bytes: Callable[[RunConfig], int],
    device: str,
) -> dict[str, Any]:
    """Another artifact of a run's last checkpoint, of at most `max_bytes`, and its score.

    By scheme mixed-rans; without `max_bytes`, what the limit leaves beside the code, `code_bytes`
    of the run's configuration.
    """
    config = read_config(folder)
    _check_out(folder, out)
    if max_bytes is None:
        max_bytes = config.artifact.limit_bytes - code_bytes(config)
    model, dataset = _trained(folder, config, device)
    (mixed,) = fit_model(model, dataset, seq_len=config.batch.seq_len, sizes=[max_bytes])
    return _score(mixed, out, config, device)


def quantize_curve(folder: Path, out: Path, *, sizes: Sequence[int], device: str) -> Curve:
    """An artifact for each of `sizes`, of at most so many bytes, and their scores.

    Each lies beside `out`, with the size in its name. Nothing is written where one is too small.
    """
    config = read_config(folder)
    sizes = sorted(set(sizes))
    files = [out.with_stem(f"{out.stem}-{size}") for size in sizes]
    for file in files:
        _check_out(folder, file)
    model, dataset = _trained(folder, config, device)
    seq_len = config.batch.seq_len
    fitted = fit_model(model, dataset, seq_len=seq_len, sizes=sizes)
    table = byte_table(dataset.tokenizer)
    before = evaluate(model, dataset.val_tokens(), table, seq_len=seq_len)
    points = []
    for file, mixed in zip(files, fitted, strict=True):
        values = _score(mixed, file, config, device)
        points.append(
            Point(
                artifact=values["artifact"],
                artifact_bytes=values["artifact_bytes"],
                bits_per_weight=mixed.bits_per_weight,
                predicted_loss=mixed.predicted_loss,
                val_loss=values["val_loss"],
                val_bpb=values["val_bpb"],
                lost_bpb=values["val_bpb"] - before.bpb,
            )
        )
    return Curve(str(folder), model.n_parameters, before.loss, before.bpb, tuple(points))


def _check_out(folder: Path, out: Path) -> None:
    """Only an artifact may be replaced, and not the run's own."""
    if not out.is_file():
        return
    with out.open("rb") as file:
        is_artifact = file.read(len(MAGIC)) == MAGIC
    if not is_artifact or out.resolve() == (folder / "artifact.sg").resolve():
        raise UserError(
            f"--out {out}: is the run's own artifact, or none at all; choose another --out"
        )


def _trained(folder: Path, config: RunConfig, device: str) -> tuple[HybridLM, Dataset]:
    """The model of the last checkpoint, and the data it was trained on."""
    dataset = open_dataset(Path(config.data))
    tensors, _ = load_checkpoint(folder / "checkpoint")
    model = HybridLM(config.model, seed=None)
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.parameter_groups()})
    model = model.to(pick_device(device)).eval()
    model.compute_dtype = compute_dtype(model.skip_weights.device)
    return model, dataset


def _score(mixed: Mixed, path: Path, config: RunConfig, device: str) -> dict[str, Any]:
    write(path, mixed.content)
    values = score_artifact(
        path,
        data=Path(config.data),
        mode="plain",
        stride=None,
        seq_len=config.batch.seq_len,
        device=device,
    )
    return values | {
        "bits_per_weight": mixed.bits_per_weight,
        "predicted_loss": mixed.predicted_loss,
    }
