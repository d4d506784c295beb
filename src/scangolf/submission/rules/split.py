"""The validation split: whole, and the one that everybody is scored on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scangolf.data.shards import MANIFEST, Manifest, file_sha256, read_manifest, read_shard
from scangolf.data.tokenizer import BOS, Tokenizer
from scangolf.errors import UserError
from scangolf.submission.rules.finding import Finding, failed, passed, unchecked

RULE = "validation split"
CHALLENGE_DOCUMENTS = 50_000
CHALLENGE_TOKENS = {1024: 62_021_632}
"""By size of the vocabulary."""


@dataclass(frozen=True)
class ValSplit:
    """The validation half of a dataset folder; training shards need not be there."""

    folder: Path
    shards: tuple[Path, ...]
    model: Path
    """The SentencePiece model."""
    tokenizer: Tokenizer
    manifest: Manifest | None
    tokens: np.ndarray
    """The whole split, uint16."""

    @property
    def is_challenge(self) -> bool:
        """Whether its files are named as the challenge's are."""
        return all(path.name.startswith("fineweb_val_") for path in self.shards)


def open_split(folder: Path) -> ValSplit:
    """Reads the split. Raises UserError where the folder holds none, or a damaged one."""
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; name a dataset of `scangolf data`")
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    if manifest is not None:
        shards = [folder / shard.file for shard in manifest.splits["val"]]
        models = [folder / manifest.tokenizer]
    else:
        shards, models = sorted(folder.glob("*_val_*.bin")), sorted(folder.glob("*.model"))
    if not shards or len(models) != 1:
        raise UserError(
            f"--data {folder}: has {len(shards)} *_val_*.bin and {len(models)} *.model files; "
            "needs shards and one model, as `scangolf data` leaves them"
        )
    tokens = np.concatenate([read_shard(path) for path in shards])
    tokenizer = Tokenizer.load(models[0])
    if int(tokens.max()) >= tokenizer.vocab_size:
        raise UserError(
            f"--data {folder}: holds token {tokens.max()}, its tokenizer has "
            f"{tokenizer.vocab_size:,}; put the tokenizer back that made the shards"
        )
    return ValSplit(folder, tuple(shards), models[0], tokenizer, manifest, tokens)


def check_split(split: ValSplit) -> Finding:
    """Tokens, documents and hashes, against the challenge's split or the dataset's manifest."""
    n_documents = int(np.count_nonzero(split.tokens == BOS))
    hashes = {path.name: file_sha256(path) for path in split.shards}
    evidence = {"tokens": len(split.tokens), "documents": n_documents, "sha256": hashes}
    problems = _differences(split, hashes)
    if split.is_challenge:
        wanted = CHALLENGE_TOKENS.get(split.tokenizer.vocab_size, len(split.tokens))
        if len(split.tokens) != wanted:
            problems.append(f"{len(split.tokens):,} tokens, the challenge's has {wanted:,}")
        if n_documents != CHALLENGE_DOCUMENTS:
            problems.append(f"{n_documents:,} documents, the challenge's has 50,000")
    if problems:
        return failed(RULE, "; ".join(problems), **evidence)
    if split.is_challenge:
        hashed = "hashes as in the manifest" if split.manifest else "no manifest to compare hashes"
        return passed(
            RULE, f"{len(split.tokens):,} tokens of the challenge's split, {hashed}", **evidence
        )
    not_it = "it is not the challenge's split"
    if split.manifest is None:
        return unchecked(RULE, f"no manifest.json to compare with; {not_it}", **evidence)
    return passed(
        RULE,
        f"{len(split.tokens):,} tokens, as the manifest of {split.manifest.name} says; {not_it}",
        **evidence,
    )


def _differences(split: ValSplit, hashes: dict[str, str]) -> list[str]:
    """Where the files are not those of the manifest."""
    if split.manifest is None:
        return []
    listed = split.manifest.splits["val"]
    found = [len(read_shard(path)) for path in split.shards]
    problems = [
        f"{shard.file} holds {n:,} tokens, manifest.json says {shard.tokens:,}"
        for shard, n in zip(listed, found, strict=True)
        if n != shard.tokens
    ]
    problems += [
        f"{shard.file} has another hash than in manifest.json"
        for shard, n in zip(listed, found, strict=True)
        if n == shard.tokens and hashes[shard.file] != shard.sha256
    ]
    if split.tokenizer.sha256 != split.manifest.tokenizer_sha256:
        problems.append(f"{split.model.name} has another hash than in manifest.json")
    return problems
