"""scangolf: the best language model in 16,000,000 bytes, trained within a wall-clock budget.

    scangolf.selective_scan           the selective scan of Mamba, a torch operator
    scangolf.selective_state_update   one decoding step of it
    scangolf.ssd_scan                 the SSD scan of Mamba-2, a torch operator
    scangolf.ssd_state_update         one decoding step of it
    scangolf.gated_delta_rule         the gated delta rule of Gated DeltaNet, a torch operator
    scangolf.gated_delta_step         one decoding step of it
    scangolf.HybridLM                 the model: any pattern of scan and attention layers
    scangolf.presets                  functions that return whole configurations, by name
    scangolf.load                     an artifact on disk -> model and tokenizer

Each is imported when it is first asked for, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scangolf.artifact.load import load
    from scangolf.model import HybridLM
    from scangolf.ops.gdn import gated_delta_rule
    from scangolf.ops.gdn_step import gated_delta_step
    from scangolf.ops.s6 import selective_scan
    from scangolf.ops.s6_step import selective_state_update
    from scangolf.ops.ssd import ssd_scan
    from scangolf.ops.ssd_step import ssd_state_update
    from scangolf.recipes import PRESETS as presets  # noqa: N811

__all__ = [
    "HybridLM",
    "gated_delta_rule",
    "gated_delta_step",
    "load",
    "presets",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
    "ssd_state_update",
]

_HOMES = {
    "HybridLM": "scangolf.model.HybridLM",
    "gated_delta_rule": "scangolf.ops.gdn.gated_delta_rule",
    "gated_delta_step": "scangolf.ops.gdn_step.gated_delta_step",
    "load": "scangolf.artifact.load.load",
    "presets": "scangolf.recipes.PRESETS",
    "selective_scan": "scangolf.ops.s6.selective_scan",
    "selective_state_update": "scangolf.ops.s6_step.selective_state_update",
    "ssd_scan": "scangolf.ops.ssd.ssd_scan",
    "ssd_state_update": "scangolf.ops.ssd_step.ssd_state_update",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scangolf' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(import_module(module), attribute)
