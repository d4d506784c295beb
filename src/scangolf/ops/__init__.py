"""The scans, as torch operators."""

from scangolf.ops.s6 import selective_scan
from scangolf.ops.s6_step import selective_state_update

__all__ = ["selective_scan", "selective_state_update"]
