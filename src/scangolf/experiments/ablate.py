"""`scangolf ablate`: every variant of a plan checked first, then all runs, a process for each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from scangolf.artifact.room import Room
from scangolf.config import RunConfig
from scangolf.data.shards import Dataset, open_dataset
from scangolf.errors import Stopped, UserError
from scangolf.experiments.plan import Plan, find_plan, read_plan, resolve
from scangolf.experiments.tables import print_checked, print_outcome, waiting
from scangolf.experiments.trial import try_out
from scangolf.experiments.work import MEMORY_WAS_FULL, Job, State, record_failure, work
from scangolf.report.page import duration
from scangolf.train.signals import handling
from scangolf.train.trackers import TrackerName, check_installed


def ablate(
    name: str,
    *,
    out: Path | None,
    data: Path | None,
    seconds: float | None,
    dry_run: bool,
    slurm: str | None,
    track: TrackerName | None,
) -> bool:
    """Checks the plan of that name or path, does its runs, and says whether none has failed.

    Raises UserError before anything starts where any variant cannot be run, and Stopped, after the
    run under way has saved itself, when a signal asks to stop.
    """
    plan = read_plan(find_plan(name))
    check_installed(track)
    dataset = functools.cache(lambda folder: open_dataset(Path(folder)))
    configs = _check(plan, dataset, None if data is None else str(data), seconds)
    jobs = plan_jobs(plan, configs, Path("runs") / plan.name if out is None else out)
    fingerprints = functools.cache(lambda folder: dataset(folder).fingerprints())
    for job in jobs:
        job.check_folder()
        job.check_text(fingerprints(job.config.data))
    if dry_run:
        return True
    if slurm is not None:
        from scangolf.experiments.slurm import submit

        submit(jobs, slurm, plan.name, track)
        return True
    try:
        _do_all(jobs, track)
    finally:
        print_outcome(jobs)
    return all(job.state() in ("finished", "under way") for job in jobs)


def plan_jobs(plan: Plan, configs: dict[str, RunConfig], out: Path) -> list[Job]:
    """All runs: one seed of every variant, then the next, so that an early end is a fair one."""
    return [
        Job(variant, dataclasses.replace(config, seed=seed), out / variant / f"seed-{seed}")
        for seed in plan.seeds
        for variant, config in configs.items()
    ]


def _check(
    plan: Plan, dataset: Callable[[str], Dataset], data: str | None, seconds: float | None
) -> dict[str, RunConfig]:
    """Resolves and tries out every variant, prints them, and refuses the plan if one is wrong."""
    resolved = resolve(plan, data=data, seconds=seconds)
    problems = dict(resolved.problems)
    rooms: dict[str, Room] = {}
    with waiting() as say:
        for variant, config in resolved.configs.items():
            say(f"checking {variant}, {len(rooms) + len(problems) + 1} of {len(plan.variants)}")
            try:
                rooms[variant] = try_out(config, dataset)
            except UserError as error:
                problems[variant] = str(error)
            except Exception as error:
                problems[variant] = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
    torch.cuda.empty_cache()  # for the runs, which are other processes
    print_checked(plan, resolved.configs, rooms)
    if problems:
        raise UserError(
            f"{plan.name}: {len(problems)} of {len(plan.variants)} variants cannot be run, so none "
            f"was started:\n{_by_problem(plan, problems)}"
        )
    return resolved.configs


def _by_problem(plan: Plan, problems: Mapping[str, str]) -> str:
    """A line for each problem, with all the variants that have it."""
    names: dict[str, list[str]] = {}
    for variant in plan.variants:
        if variant in problems:
            names.setdefault(problems[variant], []).append(variant)
    return "\n".join(f"  {', '.join(having)}: {problem}" for problem, having in names.items())


def _do_all(jobs: Sequence[Job], track: TrackerName | None) -> None:
    """What is not done; at the end once more what found no room on a GPU, beside others maybe."""
    failed_before = {job.name: job.failed_at() for job in jobs}
    pace = _Pace(jobs)
    again: list[Job] = []
    for job in itertools.chain(jobs, again):  # which grows meanwhile
        state = job.state()
        if state in ("finished", "under way"):
            continue
        if state == "failed" and job not in again and job.failed_at() != failed_before[job.name]:
            continue  # just now, in another process
        number = jobs.index(job) + 1
        print(f"run {number} of {len(jobs)}: {job.name}; {pace.where_we_stand()}", flush=True)
        if _do(job, track) == MEMORY_WAS_FULL and job not in again:
            again.append(job)


class _Pace:
    """How fast the runs of a plan come to their end, here and in other processes that share it."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.began = jobs, time.monotonic()
        self.finished_before = self._states()["finished"]

    def _states(self) -> Counter[State]:
        return Counter(job.state() for job in self.jobs)

    def where_we_stand(self) -> str:
        """Counts, and the time left: before any run has ended only that of their training."""
        states = self._states()
        finished, failed = states["finished"], states["failed"]
        left = len(self.jobs) - finished - failed
        counts = f"{finished} finished, {failed} failed"
        if ended := finished - self.finished_before:
            seconds = (time.monotonic() - self.began) / ended
            return f"{counts}, about {duration(left * seconds)} left"
        config = self.jobs[0].config
        if config.steps is None:
            return f"{counts}, {duration(left * config.seconds)} of training left"
        return counts


def _do(job: Job, track: TrackerName | None) -> int:
    """A run in a process of its own, to its exit code.

    Raises Stopped where a signal ended it, or came to us meanwhile.
    """
    process = multiprocessing.get_context("spawn").Process(target=work, args=(job, track))
    with _passing_on(process) as signals:
        process.start()
        process.join()
    code = process.exitcode or 0
    if signals or code - 128 in (signal.SIGINT, signal.SIGTERM):
        raise Stopped(signals[0] if signals else code - 128)
    if code != 0 and job.failed_at() is None:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        try:
            record_failure(job, f"its process ended with {how}; see {job.folder / 'train.log'}")
        except OSError as error:  # the run's folder cannot be made or written: not so the others'
            print(f"{job.folder}: {error.strerror}; its run has not been done", flush=True)
    return code


@contextmanager
def _passing_on(process: BaseProcess) -> Iterator[list[int]]:
    """The signals that ask to stop: SIGTERM is passed on, Ctrl-C the terminal sends to both."""
    signals: list[int] = []

    def note(number: int, _frame: object) -> None:
        signals.append(number)
        if number == signal.SIGTERM and process.pid is not None:
            os.kill(process.pid, number)

    with handling(note):
        yield signals
