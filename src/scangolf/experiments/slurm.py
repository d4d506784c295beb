"""The runs of a plan as jobs of a SLURM cluster, by submitit (`pip install scangolf[slurm]`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scangolf.errors import UserError
from scangolf.experiments.work import Job, work
from scangolf.train.trackers import TrackerName

BESIDES_TRAINING = 60
"""Minutes a job may take beyond its budget: compiling, scoring, writing the artifact."""


def submit(
    jobs: Sequence[Job], partition: str, name: str, track: TrackerName | None = None
) -> None:
    """Submits a job for every run that is not finished, on one GPU each, and prints their numbers.

    A job does what `work` does: one that is already done, or under way elsewhere, ends at once, so
    that submitting a plan again continues it. Raises UserError where submitit is not installed and
    where the budget is in steps, as nobody knows then what time to ask for.
    """
    try:
        import submitit  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError("--slurm: submitit is missing; pip install 'scangolf[slurm]'") from error
    left = [job for job in jobs if job.state() != "finished"]
    if any(job.config.steps is not None for job in left):
        raise UserError("--slurm: the plan's budget is in steps; give --seconds as well")
    if not left:
        print("every run is finished")
        return
    logs = left[0].folder.parents[1] / "slurm" / "%j"
    try:
        # Named, because without SLURM submitit would run the jobs on this machine.
        executor = submitit.AutoExecutor(logs, cluster="slurm")
    except RuntimeError as error:
        raise UserError(f"--slurm: {error}; submit from a machine of the cluster") from error
    executor.update_parameters(
        name=name,
        slurm_partition=partition,
        gpus_per_node=1,
        timeout_min=math.ceil(left[0].config.seconds / 60) + BESIDES_TRAINING,
    )
    for job, handle in zip(left, executor.map_array(work, left, [track] * len(left)), strict=True):
        print(f"job {handle.job_id}: {job.name}")
