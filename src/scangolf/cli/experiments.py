"""Many runs: `scangolf ablate`, and `scangolf compare` for what they left."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path

from tyro.conf import Positional

from scangolf.cli.app import Verb, app
from scangolf.train.trackers import TrackerName


@app.command
def ablate(
    plan: Positional[str],
    out: Path | None = None,
    data: Path | None = None,
    seconds: float | None = None,
    dry_run: bool = False,
    slurm: str | None = None,
    track: TrackerName | None = None,
) -> Verb:
    """Do all runs of a plan, after checking every one of its variants.

    Given again, it skips what is finished and continues what was interrupted; given several times
    at once, the processes share the runs. Exit code 1 if a run failed.

    Args:
        plan: A TOML file, or the name of a plan in the package: seed-ablation, challenge-60s,
            hybrid-against-attention, hybrid-against-attention-60s.
        out: Folder of the runs, VARIANT/seed-N; runs/ and the plan's name unless given.
        data: Folder of the dataset, instead of the plan's.
        seconds: Budget of every run, instead of the plan's.
        dry_run: Only check and show the variants.
        slurm: Submit the runs to this partition of a SLURM cluster instead.
        track: Also show every run in this tracker.
    """

    def verb() -> None:
        from scangolf.experiments.ablate import ablate as do

        well = do(
            plan, out=out, data=data, seconds=seconds, dry_run=dry_run, slurm=slurm, track=track
        )
        if not well:
            sys.exit(1)

    return verb


@app.command
def compare(
    runs: Positional[tuple[Path, ...]],
    against: str | None = None,
    png: Path | None = None,
    json: bool = False,
) -> Verb:
    """Which configuration is better, and is it more than chance? Statistics over seeds.

    Runs that differ in nothing but the seed are one configuration. Intervals are of 95 %; tests are
    paired over common seeds, and p is corrected (Holm) for all comparisons made.

    Args:
        runs: Run folders, or folders of them, such as an ablation's.
        against: Compare all others with this configuration, and by the challenge's rule for records
            (ahead by 0.005 nats a token at p < 0.01), instead of all pairs.
        png: Also draw the scores with their intervals, as this picture.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.experiments.compare import compare as read
        from scangolf.experiments.report import comparison_png, print_comparison

        comparison = read(runs, against)
        if json:
            print(dumps(comparison.to_dict(), indent=2))
        else:
            print_comparison(comparison)
        if png is not None:
            comparison_png(comparison, png)

    return verb
