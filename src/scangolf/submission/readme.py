"""The README.md of a submission: what the model is, how it is run, and its figures."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Any

from scangolf.config import LayerKind, RunConfig

TEMPLATE = """\
# {name}

A language model of {blocks} blocks and {parameters:,} parameters, of width {width}, over {vocab:,}
tokens{tied}. A block mixes along the sequence, then passes an MLP of width {mlp}; each
of the two is added to the residual stream with a scale per channel, and the first half of the
blocks hands its output to the second half, innermost first.

{mixers}

Matrices are trained by Muon, everything else by Adam, on batches of {batch:,} tokens in sequences
of {length:,}. The artifact, of scheme {scheme}, holds configuration, tokenizer and weights;
reading it runs no code.

## Figures

| | |
|---|---|
| bits a byte, by the artifact as it was read back from disk | **{val_bpb:.4f}** |
| the same before the weights were rounded | {val_bpb_before_artifact:.4f} |
| loss, nats a token | {val_loss:.4f} |
| validation split, whole | {val_tokens:,} tokens, {val_bytes:,} bytes |
| artifact / code / both | {bytes_artifact:,} / {bytes_code:,} / {bytes_total:,} bytes |
| limit | {limit:,} bytes |
| training | {steps:,} steps, {tokens:,} tokens, {train_seconds:.1f} s |
| hardware | {hardware} |
| seed | {seed} |

The code is `train_gpt.py` alone, its bytes as they lie here.

## Running it

`train_gpt.py` needs {libraries}, and no network.
Its data is a folder of shards in the challenge's format, `*_train_*.bin` and `*_val_*.bin`, with
the SentencePiece `.model` that they were made with.

```
python train_gpt.py --data DIR --out RUN                # trains, writes and scores RUN/artifact.sg
torchrun --nproc-per-node 8 train_gpt.py --data DIR --out RUN
python train_gpt.py --data DIR --eval artifact.sg       # scores this artifact: one line of JSON
```

`--seconds` and `--steps` set the budget, by default {budget}; `--seed` and `--device` the rest.
With a budget in steps a run on a CPU is repeatable to the bit.

`train.log` is the log of the run, `submission.json` its figures.
"""


def readme(config: RunConfig, values: dict[str, Any], libraries: Collection[str]) -> str:
    """README.md for a run of `config` with the `values` of its submission.json."""
    model = config.model
    counts: dict[LayerKind, int] = {kind: model.layers.count(kind) for kind in model.layers}
    return TEMPLATE.format(
        **values,
        blocks=model.n_layers,
        width=model.d_model,
        tied=", its embedding tied to the output" if model.tie_embeddings else "",
        vocab=model.vocab_size,
        mlp=model.mlp_width,
        mixers="\n".join(f"- {n} x `{kind}`: {_title(kind)}" for kind, n in counts.items()),
        batch=config.batch.tokens,
        length=config.batch.seq_len,
        scheme=config.artifact.scheme,
        limit=config.artifact.limit_bytes,
        budget=f"{config.seconds:g} s" if config.steps is None else f"{config.steps:,} steps",
        libraries=", ".join(sorted(libraries)),
    )


def _title(kind: LayerKind) -> str:
    """What a layer is, as the first line of its file says it."""
    return (import_module(f"scangolf.layers.{kind}").__doc__ or "").partition("\n")[0]
