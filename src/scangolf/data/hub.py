"""The challenge's own shards, from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scangolf.data.build import require_new
from scangolf.data.shards import (
    SPLITS,
    Manifest,
    Shard,
    Split,
    describe_shard,
    file_sha256,
    open_dataset,
    read_shard,
    write_manifest,
)
from scangolf.data.tokenizer import BOS, Tokenizer
from scangolf.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

REPO = "willdepueoai/parameter-golf"
SHARD = re.compile(r".*/fineweb10B_(?P<variant>[^/]+)/fineweb_(?P<kind>train|val)_\d+\.bin")
MODEL = re.compile(r".*/fineweb_(?P<size>\d+)_bpe\.model")


def download_fineweb(
    folder: Path, variant: str = "sp1024", train_shards: int = 1, *, endpoint: str | None = None
) -> Manifest:
    """Fetches the whole validation split, the first training shards and their tokenizer.

    It ends as `build_dataset` does, but for the bytes of text, which the hub does not tell. Every
    file is checked against the repository's hash. Files that arrived wait in a hidden folder
    beside `folder` for the others, so the next try need not fetch them again. `endpoint` is
    another server that speaks as the hub does.
    """
    from huggingface_hub import HfApi

    require_new(folder)
    api = HfApi(endpoint=endpoint)
    with _asking(api, "the list of its files"):
        commit = api.repo_info(REPO, repo_type="dataset").sha
        tree = list(
            api.list_repo_tree(
                REPO, "datasets", recursive=True, revision=commit, repo_type="dataset"
            )
        )
    files = _choose(tree, variant, train_shards)

    waiting = folder.with_name(f".{folder.name}.download")
    fetched = {kind: [_fetch(api, f, commit, waiting) for f in files[kind]] for kind in files}
    try:
        whole = waiting / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        manifest = _assemble(whole, fetched, f"fineweb-{variant}")
        os.replace(whole, folder)
        shutil.rmtree(waiting, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder}: could not be written: {error.strerror}; free some space or choose "
            "another --out"
        ) from error
    return manifest


def _choose(tree: Iterable[Any], variant: str, train_shards: int) -> dict[str, list[RepoFile]]:
    """The files of a variant: those of "train" and "val" in order, and the one of "model"."""
    shards: dict[str, dict[str, list[RepoFile]]] = defaultdict(lambda: {s: [] for s in SPLITS})
    models: dict[str, RepoFile] = {}
    for entry in sorted(tree, key=lambda entry: entry.path):
        if match := SHARD.fullmatch(entry.path):
            shards[match["variant"]][match["kind"]].append(entry)
        elif match := MODEL.fullmatch(entry.path):
            models[f"sp{match['size']}"] = entry
    whole = sorted(name for name in shards if name in models and all(shards[name].values()))
    if variant not in whole:
        raise UserError(
            f"--variant {variant}: {REPO} has no such shards with a SentencePiece model; "
            f"choose from {', '.join(whole) or 'none'}"
        )
    train = shards[variant]["train"]
    if not 1 <= train_shards <= len(train):
        raise UserError(f"--train-shards {train_shards}: {variant} has 1 to {len(train)}")
    return {
        "train": train[:train_shards],
        "val": shards[variant]["val"],
        "model": [models[variant]],
    }


def _fetch(api: HfApi, file: RepoFile, commit: str | None, folder: Path) -> Path:
    """Downloads a file unless it is there, and checks its hash."""
    with _asking(api, file.path):
        path = api.hf_hub_download(
            REPO, file.path, repo_type="dataset", revision=commit, local_dir=folder
        )
    path = Path(path)
    if file.lfs is not None:
        wanted, found = file.lfs.sha256, file_sha256(path)
    else:
        content = path.read_bytes()
        git_object = b"blob %d\0" % len(content) + content
        wanted, found = file.blob_id, hashlib.sha1(git_object).hexdigest()
    if found != wanted:
        path.unlink()
        raise UserError(
            f"{file.path}: arrived damaged, its hash is {found[:12]} instead of {wanted[:12]}; "
            "try again"
        )
    return path


def _assemble(folder: Path, fetched: dict[str, list[Path]], name: str) -> Manifest:
    """Moves fetched files into a dataset folder and describes them in its manifest."""
    model = folder / "tokenizer.model"
    os.replace(fetched["model"][0], model)
    tokenizer = Tokenizer.load(model)
    splits: dict[Split, list[Shard]] = {}
    for split in SPLITS:
        splits[split] = []
        for source in fetched[split]:
            documents = int(np.count_nonzero(read_shard(source) == BOS))
            path = folder / source.name
            os.replace(source, path)
            splits[split].append(describe_shard(path, documents, None))
    manifest = Manifest(name, tokenizer.vocab_size, model.name, tokenizer.sha256, splits)
    write_manifest(folder, manifest)
    open_dataset(folder)
    return manifest


@contextmanager
def _asking(api: HfApi, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's client lets exceptions of several libraries through
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{api.endpoint}: could not fetch {what} of {REPO}: {reason}; check the network and "
            "run the same command again, it continues"
        ) from error
