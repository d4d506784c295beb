"""A submission folder: its five files, and what submission.json claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from scangolf.artifact.codec import MAGIC
from scangolf.artifact.load import load
from scangolf.data.tokenizer import Tokenizer
from scangolf.device import pick_device
from scangolf.errors import UserError
from scangolf.model import HybridLM
from scangolf.score.evaluate import Mode
from scangolf.submission.rules.claim import Claim
from scangolf.submission.rules.finding import Finding, failed, passed
from scangolf.submission.rules.untrusted import finite, parsed

FILES = ("README.md", "submission.json", "train.log", "train_gpt.py", "artifact.sg")
LONGEST_SEQUENCE = 2**20
"""Tokens of a sequence that a submission may ask for: memory is taken for it."""
CLAIMS: dict[str, tuple[type, ...]] = {
    "val_bpb": (int, float),
    "bytes_total": (int,),
    "bytes_code": (int,),
    "bytes_artifact": (int,),
    "seed": (int,),
    "train_seconds": (int, float),
}
"""What submission.json must say, and the types it may say it in."""
OPTIONAL: dict[str, tuple[type, ...]] = {
    "val_loss": (int, float),
    "val_tokens": (int,),
    "val_bytes": (int,),
    "parameters": (int,),
    "tokenizer_sha256": (str,),
    "seq_len": (int,),
    "stride": (int,),
    "mode": (str,),
    "seeds": (list,),
}
"""What the rules read besides, where it is there."""


@dataclass(frozen=True)
class Submission:
    """A folder as it was handed in. Nothing in it is run, and nothing is read twice from disk."""

    folder: Path
    content: Mapping[str, bytes]
    """The files that are there, by name."""

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact.sg"

    @cached_property
    def claims(self) -> dict[str, Any]:
        """submission.json, without what has the wrong type."""
        return {k: v for k, v in self._values.items() if k not in self._mistyped}

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence in the claimed evaluation."""
        return self.claims.get("seq_len", 1024)

    @property
    def mode(self) -> Mode:
        return self.claims.get("mode", "plain")

    @property
    def claimed_score(self) -> Claim | None:
        bpb = self.claims.get("val_bpb")
        return None if bpb is None else Claim("submission.json", bpb, self.claims.get("val_bytes"))

    @cached_property
    def opened(self) -> tuple[HybridLM, Tokenizer] | str:
        """The artifact's model, on this machine's device, and tokenizer; or why there are none."""
        if "artifact.sg" not in self.content:
            return "artifact.sg is missing"
        if self.is_foreign:
            return "artifact.sg is not in scangolf's format"
        try:
            return load(self.artifact, pick_device("auto"))
        except UserError as error:
            return str(error)

    @property
    def is_foreign(self) -> bool:
        """The artifact is there, in a format that only its own script may know."""
        return not self.content.get("artifact.sg", MAGIC).startswith(MAGIC)

    @cached_property
    def problems(self) -> list[str]:
        """What is missing from the folder or unreadable in it."""
        found = [f"{name} is missing" for name in FILES if name not in self.content]
        found += [f"{name} is empty" for name, content in self.content.items() if not content]
        if "submission.json" in self.content:
            found += [f"submission.json says no {key}" for key in CLAIMS if key not in self._values]
            found += [f"submission.json: {why}" for why in self._mistyped.values()]
        if "artifact.sg" in self.content and isinstance(self.opened, str) and not self.is_foreign:
            found.append(self.opened)
        return found

    @cached_property
    def _values(self) -> dict[str, Any]:
        values = parsed(self.content.get("submission.json", b""))
        if not isinstance(values, dict):
            return {}
        return {key: value for key, value in values.items() if value is not None}

    @cached_property
    def _mistyped(self) -> dict[str, str]:
        wrong = {}
        for key, types in (CLAIMS | OPTIONAL).items():
            value = self._values.get(key, types[0]())
            if isinstance(value, bool) or not isinstance(value, types):
                wrong[key] = f"{key} is {value!r:.40}, wanted {types[-1].__name__}"
        for key, value in self._values.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and finite(value) is None:
                wrong[key] = f"{key} is {value!r:.40}, wanted a finite number"
        for key in ("seq_len", "stride"):
            if key not in wrong and not 1 <= self._values.get(key, 1) <= LONGEST_SEQUENCE:
                wrong[key] = f"{key} is {self._values[key]}, wanted 1 to {LONGEST_SEQUENCE:,}"
        if not wrong and self._values.get("stride", 1) > self._values.get("seq_len", 1024):
            wrong["stride"] = f"stride is {self._values['stride']}, wanted at most seq_len"
        mode = self._values.get("mode", "plain")
        if mode not in get_args(Mode):
            wrong["mode"] = f"mode is {mode!r:.40}, wanted one of {', '.join(get_args(Mode))}"
        return wrong


def open_submission(folder: Path) -> Submission:
    """Reads the folder's files. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that `scangolf submit` wrote")
    paths = [folder / name for name in FILES]
    return Submission(folder, {path.name: path.read_bytes() for path in paths if path.is_file()})


def check_files(submission: Submission) -> Finding:
    """Five files, a submission.json with its claims, an artifact that is whole."""
    sizes = {name: len(content) for name, content in submission.content.items()}
    if submission.problems:
        return failed("files", "; ".join(submission.problems), bytes=sizes)
    note = f"; {submission.opened}" if submission.is_foreign else ""
    return passed("files", f"all {len(FILES)} files can be read{note}", bytes=sizes)
