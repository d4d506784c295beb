"""The command line. A verb imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

import contextlib
import errno
import io
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from scangolf.config import PRESETS, RunConfig
from scangolf.console import one_line, print_sample, print_values
from scangolf.errors import Stopped, UserError

if TYPE_CHECKING:
    from scangolf.data.shards import Manifest
    from scangolf.data.text import Split
    from scangolf.data.tokenizer import Tokenizer

Verb = Callable[[], None]
"""What a parsed command line will do, run after parsing is over."""
PresetName = Literal[
    "tiny", "baseline", "seed", "hybrid", "hybrid-1to1", "ssm",
    "hybrid-ssd", "hybrid-gdn", "hybrid-lti", "parallel",
]  # fmt: skip

LOCAL_VAL_SHARE = 0.05

app = SubcommandApp()
data_app = SubcommandApp()
train_app = SubcommandApp()
bench_app = SubcommandApp()
app.command(data_app, name="data", help="Make a dataset, or look into one.")
app.command(train_app, name="train", help="Train a preset within its budget, into a run folder.")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb. Exits with 2 for the user's mistakes and for files that cannot be read or
    written (a full disk), with 128 + its number after a signal."""
    try:
        _parse_and_run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"scangolf: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # our reader has left, as `| head` does
        sys.stderr.close()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; free some space (a run goes on with --resume)" * (error.errno == errno.ENOSPC)
        print(f"scangolf: {where}{error.strerror or error}{advice}", file=sys.stderr)
        sys.exit(2)


def _parse_and_run(args: Sequence[str]) -> None:
    """Parses with tyro, whose boxed complaint becomes one line, and runs the verb."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            verb = app.cli(prog="scangolf", args=args or ["--help"])
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError(one_line(complaint.getvalue())) from error
    verb()


# --- data ---------------------------------------------------------------------------------------


@data_app.command(name="local")
def data_local(out: Path = Path("data/local"), vocab_size: int = 1024, json: bool = False) -> Verb:
    """The text that every Python carries, with a tokenizer trained on it.

    Args:
        out: Folder of the dataset to write.
        vocab_size: Tokens of the tokenizer.
        json: Print the manifest as JSON.
    """

    def verb() -> None:
        from scangolf.data.text import local_documents, split_by_hash
        from scangolf.data.tokenizer import train_tokenizer

        documents: list[tuple[str, Split]] = [
            (text, split_by_hash(text, LOCAL_VAL_SHARE)) for text in local_documents()
        ]
        training = (text for text, split in documents if split == "train")
        tokenizer = train_tokenizer(training, vocab_size)
        _build(documents, tokenizer, out, "local", json)

    return verb


@data_app.command(name="text")
def data_text(
    paths: Positional[tuple[Path, ...]],
    out: Path = Path("data/text"),
    per: Literal["line", "file"] = "line",
    val: tuple[Path, ...] = (),
    val_share: float = 0.02,
    tokenizer: Path | None = None,
    vocab_size: int = 1024,
    json: bool = False,
) -> Verb:
    """Your own text: .txt, .jsonl (field text), .parquet, also .xz, .gz and .zst of the first two.

    Args:
        paths: Files, or folders of files; at least one.
        out: Folder of the dataset to write.
        per: A .txt file holds one document a line, or is one document.
        val: Files of the validation split; without them a share of the documents, by hash.
        val_share: The share of documents for validation, when there are no files for it.
        tokenizer: A SentencePiece model; without one, one is trained on the training split.
        vocab_size: Tokens of the tokenizer to train.
        json: Print the manifest as JSON.
    """

    def verb() -> None:
        from scangolf.data.text import read_documents, split_by_hash
        from scangolf.data.tokenizer import Tokenizer, train_tokenizer

        if not paths:
            raise UserError("data text: name at least one file or folder, before any --val")

        def documents() -> Iterator[tuple[str, Split]]:
            for text in read_documents(paths, per):
                yield text, "train" if val else split_by_hash(text, val_share)
            for text in read_documents(val, per) if val else ():
                yield text, "val"

        if tokenizer is None:
            training = (text for text, split in documents() if split == "train")
            model = train_tokenizer(training, vocab_size)
        else:
            model = Tokenizer.load(tokenizer)
        _build(documents(), model, out, out.name, json)

    return verb


@data_app.command(name="fineweb")
def data_fineweb(
    out: Path = Path("data/fineweb-sp1024"),
    variant: str = "sp1024",
    train_shards: int = 1,
    json: bool = False,
) -> Verb:
    """The challenge's own shards, from the Hugging Face hub.

    Args:
        out: Folder of the dataset to write; an interrupted download continues there.
        variant: Tokenizer variant, as the challenge names it.
        train_shards: Training shards of 100,000,000 tokens to take.
        json: Print the manifest as JSON.
    """

    def verb() -> None:
        from scangolf.data.hub import download_fineweb

        _say_dataset(download_fineweb(out, variant, train_shards), out, json)

    return verb


@data_app.command(name="inspect")
def data_inspect(
    path: Positional[Path],
    tokenizer: Path | None = None,
    seq_len: int = 1024,
    json: bool = False,
) -> Verb:
    """What a shard or a text holds: tokens, documents, targets and the bytes behind them.

    Args:
        path: A .bin shard, or text of the kinds that `data text` reads, one document a line.
        tokenizer: A SentencePiece model; for a shard of a dataset folder, its own unless given.
        seq_len: Tokens of a sequence, for the count of targets and their bytes.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.data.inspect import inspect_shard, inspect_text
        from scangolf.data.tokenizer import Tokenizer
        from scangolf.score.bpb import byte_table

        if seq_len < 1:
            raise UserError(f"--seq-len {seq_len}: needs at least 1")
        beside = path.parent / "tokenizer.model"
        source = beside if tokenizer is None and beside.exists() else tokenizer
        model = None if source is None else Tokenizer.load(source)
        count = None if model is None else byte_table(model).total
        if path.suffix == ".bin":
            values = inspect_shard(path, model, seq_len, count)
        elif model is None:
            raise UserError(f"{path}: text needs a --tokenizer to be counted in tokens")
        else:
            values = inspect_text(path, model, seq_len, count)
        print_values(values, json)

    return verb


def _build(
    documents: Iterable[tuple[str, Split]], tokenizer: Tokenizer, out: Path, name: str, json: bool
) -> None:
    from scangolf.data.build import build_dataset

    with _counter() as progress:
        manifest = build_dataset(documents, tokenizer, out, name, progress=progress)
    _say_dataset(manifest, out, json)


@contextlib.contextmanager
def _counter() -> Iterator[Callable[[int, int], None]]:
    """A live count of documents and tokens on a terminal; elsewhere silent."""
    from rich.console import Console

    with Console().status("tokenizing") as status:

        def progress(documents: int, tokens: int) -> None:
            status.update(f"tokenizing: {documents:,} documents, {tokens:,} tokens")

        yield progress


def _say_dataset(manifest: Manifest, folder: Path, json: bool) -> None:
    if json:
        print(dumps(asdict(manifest), indent=2))
        return
    for split, shards in manifest.splits.items():
        documents, tokens = (sum(s.documents for s in shards), sum(s.tokens for s in shards))
        print(f"{split}: {documents:,} documents, {tokens:,} tokens in {len(shards)} shards")
    print(f"dataset: {folder} (vocabulary {manifest.vocab_size:,})")


# --- train --------------------------------------------------------------------------------------


def _add_preset(name: str, default: RunConfig) -> None:
    def train(
        config: Annotated[RunConfig, arg(name="")] = default,
        out: Path | None = None,
        resume: bool = False,
    ) -> Verb:
        return lambda: _train(config, default, out or Path("runs") / name, resume)

    train.__doc__ = f"""{PRESETS[name].__doc__}

    Args:
        out: Run folder; runs/{name} unless given.
        resume: Continue the run in that folder from its last checkpoint.
    """
    train_app.command(name=name)(train)


def _train(config: RunConfig, default: RunConfig, out: Path, resume: bool) -> None:
    from scangolf.run import resumed_config, run

    summary = run(resumed_config(out, config, default) if resume else config, out, resume=resume)
    sample = summary.pop("sample")
    print_values(summary, as_json=False)
    print_sample(sample["prompt"], sample["text"])


for _name, _preset in PRESETS.items():
    _add_preset(_name, _preset())


# --- score, generate, report, presets -----------------------------------------------------------


@app.command(name="eval")
def evaluate(
    artifact: Positional[Path],
    data: Path | None = None,
    mode: Literal["plain", "sliding", "stateful"] = "plain",
    stride: int | None = None,
    seq_len: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> Verb:
    """Bits per byte of an artifact as it lies on disk, on the whole validation split.

    Args:
        artifact: A run folder, or an artifact file.
        data: Folder of the dataset; for a run folder, the one it was trained on unless given.
        mode: What a target's context is: its own sequence, overlapping windows, or everything.
        stride: Targets a window scores in mode sliding; a quarter of the sequence unless given.
        seq_len: Tokens of a sequence; for a run folder, as in training unless given, else 1024.
        device: auto, cpu, cuda or mps.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.run import score_artifact

        values = score_artifact(
            artifact, data=data, mode=mode, stride=stride, seq_len=seq_len, device=device
        )
        print_values(values, json)

    return verb


@app.command
def quantize(
    run: Positional[Path],
    out: Path | None = None,
    bytes: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> Verb:
    """Round a run's weights once more, into so many bytes, and score the artifact on disk.

    By scheme mixed-rans, whatever the run's own was: many sizes of one run draw its bits a byte
    against its bytes.

    Args:
        run: A run folder with a checkpoint.
        out: The artifact to write; quantized.sg in the run folder unless given.
        bytes: The artifact's size, at most; the run's limit less the code unless given.
        device: auto, cpu, cuda or mps.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.run import quantize_run

        file = run / "quantized.sg" if out is None else out
        print_values(quantize_run(run, file, max_bytes=bytes, device=device), json)

    return verb


@app.command
def generate(
    artifact: Positional[Path],
    prompt: str = "The ",
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> Verb:
    """Text that continues a prompt, in memory that does not grow with the text.

    Args:
        artifact: A run folder, or an artifact file.
        prompt: What the text begins with.
        tokens: Tokens to add.
        temperature: 0 always takes the likeliest token; 1 samples the model's own distribution.
        top_k: Sample from so many of the likeliest tokens.
        seed: The same seed gives the same text.
        device: auto, cpu, cuda or mps.
    """

    def verb() -> None:
        from scangolf.artifact.load import load
        from scangolf.device import pick_device
        from scangolf.generate import generate as continue_text

        if tokens < 1 or top_k < 1 or temperature < 0:
            raise UserError(
                f"--tokens {tokens} --top-k {top_k} --temperature {temperature}: "
                "needs at least 1 token, a top-k of 1 and a temperature of 0"
            )
        model, tokenizer = load(artifact, pick_device(device))
        text = continue_text(
            model, tokenizer, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        print_sample(prompt, text)

    return verb


@app.command
def report(run: Positional[Path], png: Path | None = None) -> Verb:
    """Write report.html into a run folder: curves, score, bytes and a sample on one page.

    Args:
        run: A run folder, of a finished run or not.
        png: Also write the curve of bits per byte alone, as this picture.
    """

    def verb() -> None:
        from scangolf.report.page import write_report
        from scangolf.report.plots import curve_png

        print(write_report(run))
        if png is not None:
            curve_png(run, png)
            print(png)

    return verb


@app.command
def presets(name: Positional[PresetName | None] = None, json: bool = False) -> Verb:
    """Every preset with its layers, parameters and bytes, or one as its whole configuration.

    Args:
        name: Show this one's configuration.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.config import to_dict

        if name is not None:
            print_values(to_dict(PRESETS[name]()), json)
            return
        from scangolf.run import describe_preset

        rows = {key: describe_preset(preset()) for key, preset in PRESETS.items()}
        print_values(rows, json)

    return verb


# --- bench --------------------------------------------------------------------------------------

app.command(bench_app, name="bench", help="Speed, checked first, beside the peers installed.")


@bench_app.command(name="scan")
def bench_scan(
    op: Literal["s6", "ssd", "gdn"] = "s6",
    shape: tuple[str, ...] = (),
    channels: int | None = None,
    state: int | None = None,
    dtype: Literal["bf16", "float16", "float32"] | None = None,
    seconds: float = 2.0,
    device: str = "auto",
    crossing: bool = False,
    png: Path | None = None,
    json: bool = False,
) -> Verb:
    """Speed of a scan, forward and backward, beside its peers and its floor.

    Outputs and gradients are compared with float64 first: what fails gets no times, and exit
    code 1.

    Args:
        op: s6 (Mamba's selective scan), ssd (Mamba-2's) or gdn (the gated delta rule).
        shape: Shapes, each batch x length (16x4096); on a GPU 64x1024 16x4096, and for s6 4x16384,
            unless given.
        channels: 1024 on a GPU, 256 on a CPU, unless given; in heads of 64 for ssd and gdn.
        state: States of a channel; 16 for s6, 64 for the others, unless given.
        dtype: Of the activations; bf16 on a GPU, float32 on a CPU, unless given.
        seconds: Of repetitions, for each figure.
        device: auto, cpu or cuda.
        crossing: From which length on is the scan faster than attention? At one number of tokens,
            65536 and lengths 512 to 32768 on a GPU, 2048 and 128 to 2048 on a CPU, unless shapes
            are given.
        png: Also draw the crossing, as this picture.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.bench.scan import bench_scan as measure

        if not measure(op, shape, channels, state, dtype, seconds, device, crossing, png, json):
            sys.exit(1)

    return verb


if __name__ == "__main__":
    main()
