"""`scangolf data`: datasets, made or looked into."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from scangolf.cli.app import Verb, app
from scangolf.console import print_values
from scangolf.errors import UserError

if TYPE_CHECKING:
    from scangolf.data.shards import Manifest, Split
    from scangolf.data.tokenizer import Tokenizer

LOCAL_VAL_SHARE = 0.05

data_app = SubcommandApp()
app.command(data_app, name="data", help="Make a dataset, or look into one.")


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
        from scangolf.data.build import require_both
        from scangolf.data.text import read_documents, split_by_hash
        from scangolf.data.tokenizer import Tokenizer, train_tokenizer

        if not paths:
            raise UserError("data text: name at least one file or folder, before any --val")
        if not 0 < val_share < 1:
            raise UserError(f"--val-share {val_share}: needs a share above 0 and below 1")

        def documents() -> Iterator[tuple[str, Split]]:
            for text in read_documents(paths, per):
                yield text, "train" if val else split_by_hash(text, val_share)
            for text in read_documents(val, per) if val else ():
                yield text, "val"

        if tokenizer is None:
            if all(split == "val" for _, split in documents()):
                require_both(Counter(split for _, split in documents()))
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
    """What a dataset, a shard or a text holds: tokens, documents, targets, bytes behind them.

    Args:
        path: A dataset folder, a .bin shard, or text that `data text` reads, one document a line.
        tokenizer: A SentencePiece model; for a shard of a dataset folder, its own unless given.
        seq_len: Tokens of a sequence, for the count of targets and their bytes.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.data.inspect import inspect_dataset, inspect_shard, inspect_text
        from scangolf.data.shards import open_dataset
        from scangolf.data.tokenizer import Tokenizer
        from scangolf.score.bpb import byte_table

        if seq_len < 1:
            raise UserError(f"--seq-len {seq_len}: needs at least 1")
        if path.is_dir():
            if tokenizer is not None:
                raise UserError(f"--tokenizer {tokenizer}: {path} has its own; leave it out")
            dataset = open_dataset(path)
            count = byte_table(dataset.tokenizer).total
            print_values(inspect_dataset(dataset, seq_len, count), json)
            return
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; name a shard, a dataset or text")
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
        of = "shard" if len(shards) == 1 else "shards"
        print(f"{split}: {documents:,} documents, {tokens:,} tokens in {len(shards)} {of}")
    print(f"dataset: {folder} (vocabulary {manifest.vocab_size:,})")
