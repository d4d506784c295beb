"""The scans, as torch operators."""

from scangolf.ops.gdn import gated_delta_rule
from scangolf.ops.gdn_step import gated_delta_step
from scangolf.ops.s6 import selective_scan
from scangolf.ops.s6_step import selective_state_update
from scangolf.ops.ssd import ssd_scan
from scangolf.ops.ssd_step import ssd_state_update

__all__ = [
    "gated_delta_rule",
    "gated_delta_step",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
    "ssd_state_update",
]
