"""`scangolf audit`: the challenge's rules, checked on a submission folder."""

from __future__ import annotations

import sys
from pathlib import Path

from tyro.conf import Positional

from scangolf.cli.app import Verb, app
from scangolf.console import print_verdicts


@app.command
def audit(
    folder: Positional[Path],
    data: Path | None = None,
    baseline_nats: float | None = None,
    json: bool = False,
) -> Verb:
    """Check a submission against the rules: sizes, score, causality, what its evaluation does.

    Runs the submitted script, without network, with your rights. Exit code 1 if a rule failed.

    Args:
        folder: README.md, submission.json, train.log, train_gpt.py and artifact.sg.
        data: Folder of the dataset that it is scored on; without it nothing is scored or run.
        baseline_nats: Loss a token of the last record, for a claim to beat it.
        json: Print JSON, with the numbers that each verdict rests on.
    """

    def verb() -> None:
        from rich.console import Console

        from scangolf.submission.audit import audit as check

        with Console(stderr=True).status("auditing") as status:
            findings = check(folder, data=data, baseline_nats=baseline_nats, say=status.update)
        failed = [finding.rule for finding in findings if finding.failed]
        if json:
            from dataclasses import asdict
            from json import dumps

            rules = [asdict(finding) for finding in findings]
            print(dumps({"folder": str(folder), "passed": not failed, "rules": rules}, indent=2))
        else:
            print_verdicts((f.rule, f.verdict, f.why) for f in findings)
            n_open = sum(f.verdict == "cannot be checked by software" for f in findings)
            print(f"{len(findings)} rules: {len(failed)} failed, {n_open} cannot be checked here")
        if failed:
            sys.exit(1)

    return verb
