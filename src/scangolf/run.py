"""One run from its configuration to its summary: train, write the artifact, score what lies there.

A run folder holds config.json, metrics.jsonl, train.log, checkpoint/, artifact.sg and summary.json.
The score is that of the artifact read back from disk.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from scangolf.artifact.budget import Budget, measure
from scangolf.artifact.load import artifact_file, load
from scangolf.artifact.predict import predict_bytes
from scangolf.artifact.room import Room
from scangolf.artifact.save import save_model
from scangolf.config import RunConfig, run_config_from_dict, to_dict
from scangolf.data.shards import Dataset, file_sha256, open_dataset
from scangolf.data.tokenizer import BOS
from scangolf.device import describe, pick_device, within_memory
from scangolf.errors import UserError
from scangolf.generate import generate
from scangolf.model import HybridLM
from scangolf.records import write_json
from scangolf.score.bpb import byte_table
from scangolf.score.evaluate import Mode, Score, evaluate, part_of_split, whole_sequences
from scangolf.train.loop import Trainer, split_batch
from scangolf.train.metrics import evaluation_record, write_score
from scangolf.train.progress import Display, Plain, Silent
from scangolf.train.world import ALONE, World

MAY_CHANGE = {"seconds", "steps", "data", "device", "compile", "evals", "checkpoint_seconds"}
"""What a resumed run may be given anew; everything else must be as it was."""

SAMPLE_TOKENS = 200


def run(
    config: RunConfig,
    folder: Path,
    *,
    code_bytes: int,
    resume: bool = False,
    world: World = ALONE,
    alone: Callable[[Callable[[str], None]], AbstractContextManager[object]] = nullcontext,
    make_display: Callable[[Path], Display] = Plain,
) -> dict[str, Any]:
    """Trains into `folder` and returns its summary; a signal raises Stopped.

    Every process of `world` calls it; the first one writes the folder. `code_bytes` are those of
    the script that the run would be submitted with: they count, too. It trains within
    `alone(say)`, where `say` shows a line. `make_display` is given the path of train.log.
    """
    dataset, val_tokens = world.together(lambda: _prepare(config, world))
    room = Room.of(HybridLM(config.model, seed=None), config.artifact, code_bytes)
    room.check()
    world.first(lambda: _claim(folder, resume))

    table = byte_table(dataset.tokenizer)

    def score(model: HybridLM) -> Score:
        part = part_of_split(val_tokens, config.batch.seq_len, world.rank, world.size)
        own = evaluate(model, part, table, seq_len=config.batch.seq_len) if len(part) else Score()
        return sum(world.gather(own), Score())

    def tell_size(model: HybridLM) -> str:
        state, groups = dict(model.named_parameters()), model.parameter_groups()
        scheme = config.artifact.scheme
        return room.say_now(predict_bytes(state, groups, dataset.tokenizer, scheme))

    display = make_display(folder / "train.log") if world.is_first else Silent()
    try:
        display.say(f"{config.preset}: {', '.join(config.model.layers)}; preparing the first step")
        watch = tell_size if room.fits is None else None
        asked = f"--batch.micro-tokens {config.batch.micro_tokens}: {config.preset}"
        instead = "take fewer, of which a step then has more, or end what else uses that memory"
        with within_memory(world.device(config.device), asked, instead):
            trainer = Trainer(config, dataset, folder, display, score, world, watch)
            processes = f", {world.size} processes" if world.size > 1 else ""
            device = describe(trainer.device)
            display.say(f"{trainer.model.n_parameters:,} parameters on {device}{processes}")
            if line := room.say_before():
                display.say(line)
            if resume:
                _go_on(trainer)
            world.first(lambda: write_json(folder / "config.json", to_dict(config)))
            with alone(display.say):
                trainer.train()
        done = trainer.progress
        display.say(f"{done.step:,} steps, train_seconds {done.seconds:.3f}")
        display.say("scoring the whole validation split")
        val_score = trainer.score()
        last = evaluation_record(done, 1.0, val_score)
        world.first(lambda: write_score(folder / "metrics.jsonl", last))
        if config.artifact.scheme == "mixed-rans":
            display.say("calibrating the artifact's steps: on a CPU this can take a minute or two")
        display.say("writing the artifact, reading it back and scoring it")
        summary = _finish(trainer, dataset, folder, val_score, code_bytes)
    finally:
        display.close()
    return summary


def _prepare(config: RunConfig, world: World) -> tuple[Dataset, np.ndarray]:
    """The dataset and its validation tokens, once they and the machine suit the configuration.

    Before anything is written: what cannot be run is refused here.
    """
    dataset = open_dataset(Path(config.data))
    if dataset.tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{config.data}: its tokenizer has {dataset.tokenizer.vocab_size} tokens, the model is "
            f"built for {config.model.vocab_size}: pass --model.vocab-size "
            f"{dataset.tokenizer.vocab_size}, or another --data"
        )
    val_tokens = dataset.val_tokens()
    whole_sequences(val_tokens, config.batch.seq_len)
    split_batch(config.batch, world.size)
    world.device(config.device)
    return dataset, val_tokens


def score_artifact(
    path: Path,
    *,
    data: Path | None,
    mode: Mode,
    stride: int | None,
    seq_len: int | None,
    device: str,
) -> dict[str, Any]:
    """The score of an artifact file, or of a run folder's, read from disk.

    A run folder supplies `data` and `seq_len` where they are None; a file needs `data`.
    """
    file = artifact_file(path)
    if (path / "config.json").exists():
        config = read_config(path)
        data = Path(config.data) if data is None else data
        seq_len = config.batch.seq_len if seq_len is None else seq_len
    if seq_len is not None and seq_len < 1:
        raise UserError(f"--seq-len {seq_len}: needs at least 1")
    if data is None:
        raise UserError(f"{path}: not a run folder, so it does not know its data: pass --data")
    model, tokenizer = load(file, pick_device(device))
    dataset = open_dataset(data, ["val"])
    if dataset.tokenizer.sha256 != tokenizer.sha256:
        raise UserError(
            f"{data}: was tokenized with another tokenizer than {file} holds; use the data it was "
            "trained on, or tokenize this text with its tokenizer"
        )
    score = evaluate(
        model,
        dataset.val_tokens(),
        byte_table(tokenizer),
        seq_len=1024 if seq_len is None else seq_len,
        mode=mode,
        stride=stride,
    )
    return {
        "artifact": str(file),
        "artifact_bytes": file.stat().st_size,
        "mode": mode,
        "val_tokens": score.tokens,
        "val_bytes": score.bytes,
        "val_loss": score.loss,
        "val_bpb": score.bpb,
    }


def _claim(folder: Path, resume: bool) -> None:
    """Makes the run folder; a run that is there must be resumed."""
    if (folder / "config.json").exists() and not resume:
        raise UserError(
            f"{folder}: holds a run already; continue it with --resume, or choose --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror
        raise UserError(f"{folder}: cannot be made: {why}; choose another --out") from error


def resumed_config(folder: Path, asked: RunConfig, default: RunConfig) -> RunConfig:
    """The configuration a run folder was started with, changed where `asked` is not `default`.

    Only what leaves the training itself as it was may change (`MAY_CHANGE`), else a UserError.
    """
    saved = read_config(folder)
    old, new, plain = (dict(_leaves(config)) for config in (saved, asked, default))
    if saved.preset != asked.preset:
        raise UserError(f"{folder}: is a run of preset {saved.preset}, not {asked.preset}")
    changed = {path for path in new if new[path] != plain[path] and new[path] != old[path]}
    for path in sorted(changed - MAY_CHANGE):
        raise UserError(
            f"{folder}: --resume cannot change {path} from {old[path]} to {new[path]}; leave that "
            "option out, or train into another --out"
        )
    return dataclasses.replace(saved, **{path: new[path] for path in changed})


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a nested configuration by its dotted name."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, path + ".")
        else:
            yield path, value


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder; a UserError where it is none."""
    path = folder / "config.json"
    try:
        return run_config_from_dict(json.loads(path.read_text()), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: not a run folder, it has no config.json") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it from a copy") from error


def _go_on(trainer: Trainer) -> None:
    trainer.resume()
    steps, done = trainer.config.steps, trainer.progress.step
    if steps is not None and steps < done:
        raise UserError(f"--steps {steps}: the run has done {done:,} already; ask for more")
    trainer.display.say(f"resumed after step {done:,}")


def _finish(
    trainer: Trainer, dataset: Dataset, folder: Path, score: Score, code_bytes: int
) -> dict[str, Any]:
    """Writes the artifact, scores it as it was read back from disk, and writes the summary."""
    config, model, progress, world = trainer.config, trainer.model, trainer.progress, trainer.world
    path = folder / "artifact.sg"
    budget = world.first(lambda: _write_artifact(trainer, dataset, path, code_bytes))
    # The file lies with the first process: the others score the weights that were read there.
    on_disk = load(path, trainer.device) if world.is_first else (model, dataset.tokenizer)
    reloaded, tokenizer = on_disk
    world.copy_first_(reloaded.parameters())
    artifact_score = trainer.evaluate(reloaded)

    def summarise() -> dict[str, Any]:
        prompt = _sample_prompt(dataset)
        summary = {
            "preset": config.preset,
            "seed": config.seed,
            "device": describe(trainer.device),
            "world": world.size,
            "layers": list(config.model.layers),
            "parameters": model.n_parameters,
            "steps": progress.step,
            "tokens": progress.tokens,
            "epochs": progress.tokens / sum(map(len, dataset.train)),
            "train_seconds": progress.seconds,
            "tokens_per_second": progress.tokens / progress.seconds,
            "val_loss": score.loss,
            "val_bpb": score.bpb,
            "artifact_val_bpb": artifact_score.bpb,
            "artifact_bytes": budget.artifact_bytes,
            "artifact_sha256": file_sha256(path),
            "code_bytes": budget.code_bytes,
            "total_bytes": budget.total_bytes,
            "limit_bytes": budget.limit_bytes,
            "fits": budget.fits,
            "tokenizer_sha256": dataset.tokenizer.sha256,
            "text": trainer.text,
            "val_tokens": score.tokens,
            "val_bytes": score.bytes,
            "sample": {
                "prompt": prompt,
                "text": generate(reloaded, tokenizer, prompt, SAMPLE_TOKENS, seed=config.seed),
            },
        }
        write_json(folder / "summary.json", summary)
        return summary

    return world.first(summarise)


def _write_artifact(trainer: Trainer, dataset: Dataset, path: Path, code_bytes: int) -> Budget:
    config, model = trainer.config, trainer.model
    save_model(
        path,
        model,
        dataset,
        config.artifact.scheme,
        seq_len=config.batch.seq_len,
        max_bytes=config.artifact.limit_bytes - code_bytes,
    )
    budget = measure(path, code_bytes, config.artifact.limit_bytes)
    trainer.display.say(budget.describe())
    return budget


def _sample_prompt(dataset: Dataset) -> str:
    """The first words of the document in the middle of the validation text."""
    tokens = dataset.val[0]
    starts = np.flatnonzero(tokens == BOS)
    start = int(starts[len(starts) // 2]) if len(starts) else 0
    return dataset.tokenizer.decode(tokens[start : start + 16])
