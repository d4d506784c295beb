"""`scangolf train`: a verb for each preset, with every setting as an option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Suppress, arg
from tyro.extras import SubcommandApp

from scangolf.cli.app import Verb, app
from scangolf.config import RunConfig, to_dict
from scangolf.console import flat, print_sample, print_values
from scangolf.recipes import PRESETS
from scangolf.train.distributed import joined
from scangolf.train.trackers import TrackerName, following

train_app = SubcommandApp()
app.command(train_app, name="train", help="Train a preset within its budget, into a run folder.")


@dataclass(frozen=True)
class Options(RunConfig):
    """A run's configuration as the command line offers it: the verb has named the preset."""

    preset: Suppress[str]


def _add_preset(name: str, default: RunConfig) -> None:
    options = Options(**vars(default))

    def train(
        config: Annotated[Options, arg(name="")] = options,
        out: Path | None = None,
        resume: bool = False,
        track: TrackerName | None = None,
    ) -> Verb:
        return lambda: _train(
            RunConfig(**vars(config)), default, out or Path("runs") / name, resume, track
        )

    train.__doc__ = f"""{PRESETS[name].__doc__}

    Args:
        out: Run folder; runs/{name} unless given.
        resume: Continue the run in that folder from its last checkpoint.
        track: Also show the run in this tracker.
    """
    train_app.command(name=name)(train)


def _train(
    config: RunConfig, default: RunConfig, out: Path, resume: bool, track: TrackerName | None
) -> None:
    from scangolf.analysis.of_run import write_analysis
    from scangolf.report.page import write_report
    from scangolf.run import resumed_config, run
    from scangolf.submission.forms import code_bytes
    from scangolf.train.live import make_display

    with joined() as world:
        if resume:
            config = world.first(lambda: resumed_config(out, config, default))
            if world.is_first and (own := _set_apart(config, default)):
                print(f"settings of this run: {own}")
        with following(out, track if world.is_first else None):
            summary = run(
                config,
                out,
                code_bytes=code_bytes(config),
                resume=resume,
                world=world,
                make_display=make_display,
            )
    if not world.is_first:
        return
    write_analysis(out)
    print(f"report: {write_report(out)}")
    sample = summary.pop("sample")
    del summary["text"]  # fingerprints are for programs
    print_values(summary, as_json=False)
    print("a sample, whose beginning is the validation split's:")
    print_sample(sample["prompt"], sample["text"])


def _set_apart(config: RunConfig, default: RunConfig) -> str:
    """The settings in which a run is not its preset, in words."""
    plain = dict(flat(to_dict(default)))
    found = flat(to_dict(config))
    return ", ".join(f"{name} = {value}" for name, value in found if value != plain[name])


for _name, _preset in PRESETS.items():
    _add_preset(_name, _preset())
