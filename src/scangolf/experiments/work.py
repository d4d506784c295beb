"""One run of a plan: what state its folder is in, and the process that does it.

A run folder of a plan holds, besides what every run folder does, its claims while a process works
on it, and error.txt after a failure.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scangolf.config import RunConfig, run_config_from_dict, to_dict
from scangolf.console import flat
from scangolf.errors import OutOfMemory, Stopped, UserError
from scangolf.experiments.claims import claimed, holder
from scangolf.train.trackers import TrackerName, following

MEMORY_WAS_FULL = 3
"""The exit code of a run that found no room on its GPU, which others may have had."""

State = Literal["finished", "under way", "failed", "interrupted", "waiting"]


@dataclass(frozen=True)
class Job:
    """A run that a plan asks for, and the folder it belongs in."""

    variant: str
    config: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.config.seed}"

    def state(self) -> State:
        if self._is_complete():
            return "finished"
        if holder(self.folder) is not None:
            return "under way"
        if self.error_file.exists():
            return "failed"
        return "interrupted" if (self.folder / "config.json").exists() else "waiting"

    @property
    def is_trained(self) -> bool:
        return (self.folder / "summary.json").exists()

    def _is_complete(self) -> bool:
        """Trained, then analysed and with its page: where the artifact is there to make them of."""
        made = all((self.folder / name).is_file() for name in ("analysis.json", "report.html"))
        return self.is_trained and (made or not (self.folder / "artifact.sg").exists())

    @property
    def error_file(self) -> Path:
        return self.folder / "error.txt"

    def failed_at(self) -> int | None:
        """When the last attempt failed, to tell one failure from the next."""
        return self.error_file.stat().st_mtime_ns if self.error_file.exists() else None

    def error(self) -> str:
        """The last line of what went wrong."""
        return self.error_file.read_text(encoding="utf-8").strip().rpartition("\n")[2]

    def check_folder(self) -> None:
        """Raises UserError where it holds a run of another configuration, or cannot be a folder.

        A setting that its config.json lacks is newer than the run, which did as the default does.
        """
        for path in (self.folder, *self.folder.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f"{path}: is no folder; choose another --out, or move it away")
        path = self.folder / "config.json"
        if not path.exists():
            return
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}); delete {self.folder}") from error
        saved = dict(flat(to_dict(run_config_from_dict(values, str(path)))))
        for name, asked in flat(to_dict(self.config)):
            if saved[name] != asked:
                raise UserError(
                    f"{self.folder}: holds a run with {name} = {saved[name]}, the plan says "
                    f"{asked}; choose another --out, or delete that folder"
                )

    def check_text(self, text: Mapping[str, str]) -> None:
        """Raises UserError where it holds a finished run on other text than these fingerprints'.

        One that is not finished tells by its checkpoint, when it goes on.
        """
        if not self.is_trained:
            return
        before = json.loads((self.folder / "summary.json").read_text()).get("text", text)
        if before != text:
            raise UserError(
                f"{self.folder}: holds a run on other text than is in {self.config.data} now; "
                "choose another --out, or delete that folder"
            )


def work(job: Job, track: TrackerName | None = None) -> None:
    """Does a run from where it stands, unless it is done or another process does it.

    To be called in a process of its own: then whatever becomes of one run, the memory it filled and
    the GPU it left in error, is gone before the next one. On a GPU that such processes share it
    trains alone. A failure leaves error.txt and exit code 1, or MEMORY_WAS_FULL, a signal its own
    code; the run can be continued after each.
    """
    with claimed(job.folder) as ours:
        if not ours or job.state() == "finished":
            return
        job.error_file.unlink(missing_ok=True)
        try:
            # Torch takes seconds, in which others would find a run free that has no claim yet.
            from scangolf.analysis.of_run import write_analysis
            from scangolf.device import pick_device
            from scangolf.experiments.turns import Turns
            from scangolf.report.page import write_report
            from scangolf.run import run
            from scangolf.submission.forms import code_bytes
            from scangolf.train.live import make_display

            with Turns.on(pick_device(job.config.device)) as turns:
                if not job.is_trained:
                    with following(job.folder, track):
                        run(
                            job.config,
                            job.folder,
                            code_bytes=code_bytes(job.config),
                            resume=(job.folder / "config.json").exists(),
                            alone=turns.alone,
                            make_display=make_display,
                        )
                write_analysis(job.folder)
            write_report(job.folder)
        except Stopped as stopped:
            raise SystemExit(stopped.exit_code) from stopped
        except KeyboardInterrupt as interrupt:  # before or after the training, which saves itself
            raise SystemExit(128 + signal.SIGINT) from interrupt
        except UserError as error:
            record_failure(job, str(error))
            raise SystemExit(MEMORY_WAS_FULL if isinstance(error, OutOfMemory) else 1) from error
        except Exception as error:
            record_failure(job, traceback.format_exc())
            raise SystemExit(1) from error


def record_failure(job: Job, what: str) -> None:
    part = job.error_file.with_suffix(".part")
    part.write_text(what.rstrip() + "\n", encoding="utf-8")
    os.replace(part, job.error_file)
