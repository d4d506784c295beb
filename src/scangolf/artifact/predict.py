"""The bytes of an artifact before it is written: for a line of the console, not for the budget."""

from __future__ import annotations

from collections.abc import Mapping

import brotli
import numpy as np
from torch import Tensor

from scangolf.artifact.coding import classes, predicted_bytes, with_sizes
from scangolf.artifact.quantize import INT8_GROUPS, choose_coding, store
from scangolf.data.tokenizer import Tokenizer

SAMPLE = 2**16
"""Weights of a matrix that are looked at, about, in whole rows: they are quantised one by one."""
ROW_BYTES = 50
"""Of the manifest, for a tensor."""
ZLIB_EXCESS = 1.04
"""What zlib takes beside the entropy of trained weights; Brotli adapts and comes near it."""
MIXED_BITS = 3.25
"""Bits a weight at which scheme mixed-rans costs preset hybrid 0.002 bits a byte (docs/LOG.md)."""


def predict_bytes(
    state: Mapping[str, Tensor], groups: Mapping[str, str], tokenizer: Tokenizer, scheme: str
) -> int:
    """About how many bytes `save_artifact` would write, from the entropy of a sample of the codes.

    Within 2 % of trained weights by scheme int8-brotli, 8 % by int8-zlib. Scheme mixed-rans takes
    no more bytes than it is given: for it this is how many it should be given, MIXED_BITS for every
    weight of its matrices. `state` holds every parameter once, on any device, `groups` the
    optimiser group of each.
    """
    n_bytes = float(len(brotli.compress(tokenizer.model_bytes, quality=5)))
    n_bytes += ROW_BYTES * len(state)
    for name, tensor in state.items():
        weights = tensor.detach().float().cpu().numpy()
        coding = choose_coding(weights, groups[name], scheme)
        if scheme == "mixed-rans" and weights.ndim == 2 and groups[name] in INT8_GROUPS:
            n_bytes += weights.size * MIXED_BITS / 8
        elif coding.startswith("int8"):
            sample = weights[:: max(1, weights.size // SAMPLE)]
            codes_RD, steps_R = store(sample, coding).parts
            adapted = _adapted_bytes(codes_RD.T) if scheme == "int8-brotli" else _bytes(codes_RD)
            n_bytes += adapted * weights.size / max(sample.size, 1)
            n_bytes += len(weights) * steps_R.itemsize
        else:
            n_bytes += _bytes(store(weights, coding).parts[0])
    return round(n_bytes * (ZLIB_EXCESS if scheme == "int8-zlib" else 1.0))


def _bytes(values: np.ndarray) -> float:
    """By the entropy of their first bytes, of their second bytes, and so on."""
    planes = values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T
    counts = np.stack([np.bincount(plane, minlength=256) for plane in planes])
    share = counts / max(values.size, 1)
    return -float((counts * np.log2(share, where=counts > 0, out=np.zeros_like(share))).sum()) / 8


def _adapted_bytes(codes_RD: np.ndarray) -> float:
    """By the entropy of codes given how large their row and column are: Brotli comes near it."""
    R, D = codes_RD.shape
    exponents = with_sizes(np.zeros(R, np.int8), np.zeros(D, np.int8), codes_RD)
    return predicted_bytes([(codes_RD, classes(exponents))])
