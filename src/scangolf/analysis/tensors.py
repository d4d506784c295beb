"""What an artifact spends on each of its tensors, and what storing it so has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from scangolf.artifact.codec import Artifact


def stored_tensors(artifact: Artifact, trained: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """An entry of analysis.json for every tensor of an artifact, in the order of the file.

    bytes          before the body is compressed; with the tokenizer's they add up to the body
    entropy_bytes  about what is left of them: the order-0 entropy of each of its parts
    error          of the round trip, ||stored - trained|| / ||trained||

    `trained` holds the weights that the artifact was made of, by parameter name.
    """
    entries = []
    for name, stored in artifact.stored.items():
        weights = trained[name].detach().double().cpu()
        distance = float((artifact.state[name].double() - weights).norm())
        entries.append(
            {
                "name": name,
                "shape": list(weights.shape),
                "coding": stored.coding,
                "bytes": sum(part.nbytes for part in stored.parts),
                "entropy_bytes": round(sum(entropy_bytes(part) for part in stored.parts)),
                "error": distance / (float(weights.norm()) or 1.0),
            }
        )
    return entries


def entropy_bytes(part: np.ndarray) -> float:
    """Bytes of an array under an ideal code for its symbols, each independent of the others.

    Signed integers, the codes of weights, are symbols as they are. Everything else is taken byte
    by byte, the first bytes of all elements apart from the second: whole floats hardly repeat.
    """
    if part.dtype.kind == "i":
        return _entropy(part.ravel())
    bytes_EI = np.ascontiguousarray(part).reshape(-1, 1).view(np.uint8)
    return sum(_entropy(plane) for plane in bytes_EI.T)


def _entropy(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / symbols.size)).sum()) / 8
