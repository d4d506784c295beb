"""What a submitted train_gpt.py does: the run it was written for, or the score of an artifact."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from scangolf.config import RunConfig, run_config_from_dict
from scangolf.errors import Stopped, UserError
from scangolf.run import run, score_artifact
from scangolf.train.distributed import joined, rank
from scangolf.train.world import World


def main(config_json: str, file: str) -> None:
    """Runs the command line of `file`, whose run was configured by `config_json`.

    Of several processes that make a run, only the first one speaks.
    """
    name = Path(file).name
    try:
        config, args = _parse(run_config_from_dict(json.loads(config_json), name))
        with joined() as world:
            if args.eval is None:
                values = _train(config, args.out, file, world)
            else:
                values = world.first(lambda: _score(config, args.eval))
    except UserError as error:
        if rank() == 0:
            print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    if world.is_first:
        print(json.dumps(values))


def _train(config: RunConfig, folder: Path, file: str, world: World) -> dict[str, Any]:
    if (folder / "config.json").exists():
        raise UserError(f"--out {folder}: holds a run already; name another folder")
    return run(config, folder, code_bytes=Path(file).stat().st_size, world=world)


def _score(config: RunConfig, artifact: Path) -> dict[str, Any]:
    return score_artifact(
        artifact,
        data=Path(config.data),
        mode="plain",
        stride=None,
        seq_len=config.batch.seq_len,
        device=config.device,
    )


def _parse(config: RunConfig) -> tuple[RunConfig, argparse.Namespace]:
    """The configuration with what the command line changes of it, and all that was asked."""
    parser = argparse.ArgumentParser(
        description="Trains, writes the artifact and scores it as read back; ends with a JSON line."
    )
    add = parser.add_argument
    add("--data", help=f"folder of the shards and their tokenizer ({config.data})")
    add("--out", type=Path, default=Path("run"), help="run folder to write (run)")
    add("--seconds", type=float, help=f"budget of the training ({config.seconds:g})")
    add("--steps", type=int, help=f"budget in steps instead ({config.steps})")
    add("--seed", type=int, help=f"of initialisation and data order ({config.seed})")
    add("--device", help=f"auto, cpu, cuda, cuda:1 or mps ({config.device})")
    add("--eval", type=Path, metavar="ARTIFACT", help="score this artifact instead of training")
    args = parser.parse_args()
    names = ("data", "seconds", "steps", "seed", "device")
    asked = {name: value for name in names if (value := getattr(args, name)) is not None}
    if "seconds" in asked:
        asked = {"steps": None} | asked
    return dataclasses.replace(config, **asked), args
