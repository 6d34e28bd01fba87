"""The monitor page (TLFS 2.0a, "Monitored Notifications"), 4096 bytes, little-endian.

| offset | size | field |
|---|---|---|
| 0 | 4 | trigger_state, bits 3:0 group enable |
| 8 | 4 x 8 | trigger groups, each u32 pending and u32 armed |
| 64 | 512 | next check time, s32[4][32] |
| 576 | 256 | latency, u16[4][32], ticks of 100 ns |
| 1088 | 1024 | parameter, {u32 connection ID, u16 flag, u16 0}[4][32] |
"""

from __future__ import annotations

MONITOR_COUNT = 128
MONITORS_PER_GROUP = 32
GROUP_COUNT = 4
GROUP_OFFSET = 8
GROUP_SIZE = 8
GROUPS_END = GROUP_OFFSET + GROUP_COUNT * GROUP_SIZE
NEXT_CHECK_TIME_OFFSET = 64
LATENCY_OFFSET = 576
PARAMETER_OFFSET = 1088
PARAMETER_SIZE = 8


def pending_location(monitor_id: int) -> tuple[int, int]:
    """Byte offset in the page of the u32 that holds this monitor's pending bit, and the bit's mask in that u32."""
    group, bit = divmod(monitor_id, MONITORS_PER_GROUP)
    return GROUP_OFFSET + GROUP_SIZE * group, 1 << bit
