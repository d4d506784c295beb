"""What is done with runs and their artifacts."""

from __future__ import annotations

from json import dumps
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from scangolf.cli.app import Verb, app
from scangolf.console import print_sample, print_values
from scangolf.errors import UserError

if TYPE_CHECKING:
    from scangolf.requantize.curve import Curve


@app.command(name="eval")
def evaluate(
    artifact: Positional[Path],
    data: Path | None = None,
    mode: Literal["plain", "sliding", "stateful"] = "plain",
    stride: int | None = None,
    seq_len: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> Verb:
    """Bits per byte of an artifact as it lies on disk, on the whole validation split.

    Args:
        artifact: A run folder, or an artifact file.
        data: Folder of the dataset; for a run folder, the one it was trained on unless given.
        mode: What a target's context is: its own sequence, overlapping windows, or everything.
        stride: Targets a window scores in mode sliding; a quarter of the sequence unless given.
        seq_len: Tokens of a sequence; for a run folder, as in training unless given, else 1024.
        device: auto, cpu, cuda or mps.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.run import score_artifact

        if stride is not None and mode != "sliding":
            raise UserError(f"--stride {stride}: is of --mode sliding, not {mode}; leave it out")
        values = score_artifact(
            artifact, data=data, mode=mode, stride=stride, seq_len=seq_len, device=device
        )
        print_values(values, json)

    return verb


@app.command
def quantize(
    run: Positional[Path],
    out: Path | None = None,
    bytes: tuple[int, ...] = (),
    png: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> Verb:
    """Round a run's weights once more, into so many bytes, and score the artifact on disk.

    By scheme mixed-rans, whatever the run's own was. Several sizes give the curve of its bits a
    byte against its bytes.

    Args:
        run: A run folder with a checkpoint.
        out: The artifact to write; quantized.sg in the run folder unless given. Of several sizes,
            each has its own in its name.
        bytes: The artifact's size, at most, or several; the run's limit less the code unless given.
        png: Also draw the curve of several sizes, as this picture.
        device: auto, cpu, cuda or mps.
        json: Print JSON.
    """

    def verb() -> None:
        from rich.console import Console

        from scangolf.requantize.curve import quantize_curve, quantize_run

        busy = Console(stderr=True).status("calibrating on the run's training data, then rounding")
        file = run / "quantized.sg" if out is None else out
        if len(bytes) > 1:
            with busy:
                curve = quantize_curve(run, file, sizes=bytes, device=device)
            _show_curve(curve, png, json)
            return
        if png is not None:
            raise UserError(f"--png {png}: a curve needs several sizes, such as --bytes 1000 2000")
        from scangolf.submission.forms import code_bytes

        max_bytes = bytes[0] if bytes else None
        with busy:
            values = quantize_run(
                run, file, max_bytes=max_bytes, code_bytes=code_bytes, device=device
            )
        print_values(values, json)

    return verb


def _show_curve(curve: Curve, png: Path | None, json: bool) -> None:
    from scangolf.requantize.show import curve_png, print_curve

    if json:
        print(dumps(curve.to_dict(), indent=2))
    else:
        print_curve(curve)
    if png is not None:
        curve_png(curve, png)


@app.command
def generate(
    artifact: Positional[Path],
    prompt: str = "The ",
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> Verb:
    """Text that continues a prompt, in memory that does not grow with the text.

    Args:
        artifact: A run folder, or an artifact file.
        prompt: What the text begins with.
        tokens: Tokens to add.
        temperature: 0 always takes the likeliest token; 1 samples the model's own distribution.
        top_k: Sample from so many of the likeliest tokens.
        seed: The same seed gives the same text.
        device: auto, cpu, cuda or mps.
    """

    def verb() -> None:
        from scangolf.artifact.load import load
        from scangolf.config import SEEDS
        from scangolf.device import pick_device
        from scangolf.generate import generate as continue_text

        if tokens < 1 or top_k < 1 or not 0 <= temperature < inf:
            raise UserError(
                f"--tokens {tokens} --top-k {top_k} --temperature {temperature}: "
                "needs at least 1 token, a top-k of 1 and a temperature of 0"
            )
        if seed not in SEEDS:
            raise UserError(f"--seed {seed}: needs a whole number of 64 bits")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise UserError(f"--prompt {prompt!a}: is not UTF-8; give it in that encoding")
        model, tokenizer = load(artifact, pick_device(device))
        text = continue_text(
            model, tokenizer, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        print_sample(prompt, text)

    return verb


@app.command
def report(
    runs: Positional[tuple[Path, ...]], out: Path | None = None, png: Path | None = None
) -> Verb:
    """One page of a run: curves, score, bytes, memory, text; of several, beside each other.

    Args:
        runs: Run folders, finished or not, or folders of them, such as an ablation's.
        out: The page; report.html in the folder that was named, or beside the first of several,
            unless given.
        png: Also draw the first run's curve of bits per byte alone, as this picture.
    """

    def verb() -> None:
        from scangolf.experiments.groups import run_folders
        from scangolf.report.page import write_report
        from scangolf.report.plots import curve_png

        folders = run_folders(runs)
        page = runs[0] / "report.html" if out is None and len(runs) == 1 else out
        print(write_report(*folders, out=page))
        if png is not None:
            curve_png(folders[0], png)
            print(png)

    return verb


@app.command
def submit(run: Positional[Path], out: Path, packed: bool = False, author: str = "") -> Verb:
    """A folder to submit: the artifact, its figures, the log, and the code as one train_gpt.py.

    Args:
        run: A run folder, of a finished run.
        out: Folder to write; its name is the submission's.
        packed: Compress train_gpt.py, whose bytes count beside the artifact's.
        author: Who submits it.
    """

    def verb() -> None:
        from scangolf.submission.folder import write_submission

        print_values(write_submission(run, out, packed=packed, author=author), as_json=False)
        print(f"submission: {out}")

    return verb
