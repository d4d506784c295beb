"""How long the scans of a model remember: dt as they choose it on text, and A.

A state decays by exp(-dt |A|) a token, so over a text by exp(-|A| sum dt). With the mean of dt over
tokens, 1 / (mean dt |A|) is the number of tokens after which exactly 1/e of it is left, however
dt varies from token to token. That is the memory here.

Shapes: B sequences, L length, C channels (s6, lti) or heads (ssd, gdn), N states of a channel,
Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scangolf.layers.gdn import GDN
from scangolf.layers.lti import LTI
from scangolf.layers.parallel import Parallel
from scangolf.layers.s6 import ScanMixer
from scangolf.layers.ssd import SSD
from scangolf.model import HybridLM

QUANTILES = 21
"""From the least to the largest in steps of 5 %."""
FOR_GOOD = 1e9
"""Tokens: a memory beyond them is given as this."""


class ScanWatch:
    """The mean of dt over the tokens that a scan layer sees, a channel or head.

    dt = softplus(r + bias), r linear in what the layer reads, and zero for lti.
    """

    def __init__(self, scan: nn.Module) -> None:
        self.scan = scan
        assert isinstance(scan.A_log, Tensor)
        self.A_log = scan.A_log.detach()
        """[C, N], or [C] where a head has one A for all its states."""
        names = dict(scan.named_parameters(recurse=False))
        bias = names.get("delta_bias", names.get("dt_bias"))
        self.bias_C = torch.zeros_like(self.A_log[..., 0]) if bias is None else bias.detach()
        self.total_C = np.zeros(self.bias_C.shape)
        self.tokens = 0

    def hook(self) -> torch.utils.hooks.RemovableHandle | None:
        """Watches the layer until the handle is removed; None if there is nothing to watch."""
        scan = self.scan
        if isinstance(scan, LTI):
            self.add(torch.zeros_like(self.bias_C)[None])
            return None
        if isinstance(scan, SSD):
            weight_CD = scan.in_proj.weight[-self.A_log.shape[0] :]

            def reads(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
                self.add(F.linear(args[0], weight_CD.to(args[0].dtype)))

            return scan.register_forward_pre_hook(reads)

        def projects(_layer: nn.Module, _args: tuple[Tensor, ...], r: Tensor) -> None:
            self.add(r[..., : self.bias_C.numel()])  # of gdn's two projections the first

        name = "ab_proj" if isinstance(scan, GDN) else "dt_proj"
        return scan.get_submodule(name).register_forward_hook(projects)

    def add(self, r: Tensor) -> None:
        """Counts the tokens of r [..., C]."""
        dt_TC = F.softplus(r.detach().float() + self.bias_C).flatten(0, -2)
        self.total_C += dt_TC.sum(0).cpu().double().numpy()
        self.tokens += dt_TC.shape[0]

    def dt(self) -> np.ndarray:
        """The mean over tokens, float64 [C]; needs a token."""
        return self.total_C / self.tokens

    def memory(self) -> np.ndarray:
        """Tokens until 1/e of a state is left, float64 [C, N] or [C]."""
        A = self.A_log.cpu().double().exp().numpy()
        rate = A * (self.dt()[:, None] if A.ndim == 2 else self.dt())
        return 1 / np.maximum(rate, 1 / FOR_GOOD)


@contextmanager
def watched_scans(model: HybridLM) -> Iterator[dict[int, ScanWatch]]:
    """Watches every scan of the model, by block, for as long as the context lasts."""
    watches = {}
    for i, block in enumerate(model.blocks):
        mixer = block.mixer
        scan = mixer.ssm if isinstance(mixer, Parallel) else mixer
        if isinstance(scan, ScanMixer | SSD | GDN):
            watches[i] = ScanWatch(scan)
    handles = [watch.hook() for watch in watches.values()]
    try:
        yield watches
    finally:
        for handle in handles:
            if handle is not None:
                handle.remove()


def spectrum(block: int, kind: str, watch: ScanWatch) -> dict[str, Any]:
    """A layer's entry of analysis.json.

    dt: quantiles over its channels or heads; memory: over all their states. `states` of a channel,
    None for heads.
    """
    return {
        "block": block,
        "kind": kind,
        "channels": watch.bias_C.numel(),
        "states": watch.A_log.shape[1] if watch.A_log.ndim == 2 else None,
        "dt": _quantiles(watch.dt()),
        "memory": _quantiles(watch.memory()),
    }


def _quantiles(values: np.ndarray) -> list[float]:
    """[Q], the least first."""
    return np.quantile(values, np.linspace(0, 1, QUANTILES)).tolist()
