"""`scangolf presets`: what there is to train, and what of it will fit."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from scangolf.cli.app import PresetName, Verb, app
from scangolf.config import RunConfig, to_dict
from scangolf.console import print_values, wide_console
from scangolf.errors import UserError
from scangolf.recipes import PRESETS

if TYPE_CHECKING:
    from scangolf.artifact.room import Room


@app.command
def presets(
    name: Positional[PresetName | None] = None, bits: float | None = None, json: bool = False
) -> Verb:
    """Every preset with its layers, its parameters and whether it will fit, or one of them whole.

    Args:
        name: Show this one's configuration.
        bits: Show how large it could be instead, with so many bits left for every weight.
        json: Print JSON.
    """

    def verb() -> None:
        if bits is not None:
            _show_larger(name, bits, json)
            return
        if name is not None:
            print_values(to_dict(PRESETS[name]()), json)
            return
        configs = {key: preset() for key, preset in PRESETS.items()}
        rooms = _rooms(configs)
        if json:
            rows = {key: _record(configs[key], room) for key, room in rooms.items()}
            print(dumps(rows, indent=2))
        else:
            _print_table(configs, rooms)

    return verb


def _show_larger(name: PresetName | None, bits: float, json: bool) -> None:
    """The options that make a preset larger, and what they make of it."""
    from scangolf.artifact.grow import grow
    from scangolf.submission.forms import code_bytes_at_most

    if name is None:
        raise UserError(
            f"--bits {bits:g}: of which preset? write scangolf presets hybrid --bits ..."
        )
    if not bits > 0:
        raise UserError(f"--bits {bits:g}: needs a number above 0, such as 4.5")
    config = PRESETS[name]()
    grown = grow(config, code_bytes_at_most(config), bits)
    if not grown:
        raise UserError(
            f"--bits {bits:g}: {name} cannot be larger with so many for every weight; ask for fewer"
        )
    rows = {
        " ".join(f"--model.{k.replace('_', '-')} {v}" for k, v in g.settings.items()): {
            "parameters": g.room.parameters,
            "bits_per_weight": g.room.bits_per_weight,
        }
        for g in grown
    }
    if json:
        print(dumps(rows, indent=2))
        return
    from rich import box
    from rich.table import Table

    table = Table(f"train {name} with", box=box.SIMPLE_HEAD)
    table.add_column("parameters", justify="right")
    table.add_column("bits a weight", justify="right")
    for options, row in rows.items():
        table.add_row(options, f"{row['parameters']:,}", f"{row['bits_per_weight']:.2f}")
    wide_console().print(table)


def _rooms(configs: Mapping[str, RunConfig]) -> dict[str, Room]:
    from scangolf.artifact.room import Room
    from scangolf.model import HybridLM
    from scangolf.submission.forms import code_bytes_at_most

    return {
        name: Room.of(
            HybridLM(config.model, seed=None), config.artifact, code_bytes_at_most(config)
        )
        for name, config in configs.items()
    }


def _record(config: RunConfig, room: Room) -> dict[str, Any]:
    return {
        "layers": config.model.layers,
        "parameters": room.parameters,
        "seconds": config.seconds,
        "scheme": room.scheme,
        "uncompressed_bytes": room.uncompressed_bytes,
        "code_bytes_at_most": room.code_bytes,
        "limit_bytes": room.limit_bytes,
        "bits_per_weight": room.bits_per_weight,
        "fits": room.fits,
    }


def _print_table(configs: Mapping[str, RunConfig], rooms: Mapping[str, Room]) -> None:
    from rich import box
    from rich.table import Table

    from scangolf.artifact.predict import MIXED_BITS
    from scangolf.artifact.room import TRAINED_BYTES

    table = Table("preset", "layers", box=box.SIMPLE_HEAD)
    table.add_column("parameters", justify="right")
    for column in ("scheme", "artifact", "fits"):
        table.add_column(column)
    for name, room in rooms.items():
        model = configs[name].model
        layers = f"{model.n_layers}: {model.pattern}"
        table.add_row(name, layers, f"{room.parameters:,}", room.scheme, *_words(room))
    out = wide_console()
    out.print(table)
    (limit,) = {room.limit_bytes for room in rooms.values()}
    out.print(
        f"Fits: into {limit:,} bytes, with the code. mixed-rans takes what these leave; below "
        f"{MIXED_BITS:g} bits a weight that costs more than 0.002 bits a byte. Eight bits compress "
        f"to about {TRAINED_BYTES:g} byte a weight once it is fully trained, to less before: only "
        "the artifact itself will tell.",
        soft_wrap=True,
    )


def _words(room: Room) -> tuple[str, str]:
    """How much there is, and whether it fits."""
    if room.scheme == "mixed-rans":
        verdict = "yes" if room.fits else "in steps that cost"
        return f"{room.bits_per_weight:.2f} bits a weight", verdict
    if room.fits:
        return f"{room.uncompressed_bytes / 1e6:.2f} MB uncompressed", "yes"
    likely = room.code_bytes + room.trained_bytes <= room.limit_bytes
    verdict = "likely" if likely else "not fully trained"
    return f"~{room.trained_bytes / 1e6:.1f} MB fully trained", verdict
