"""The 109 items of the VMBus conformance list (`reference/vmbus.md` 7): those that no test covers yet, each with its reason.

Every other item is covered by a test that carries its number (`@pytest.mark.vmbus_item(7)`), in any folder of tests;
`test_vmbus_list.py` holds it so.
"""

from __future__ import annotations

TOTAL = 109

NOT_APPLICABLE: dict[int, str] = {
    95: "follows with the pipes: a message pipe whose peer is gone",
    96: "follows with the pipes: partial reads and blocked writes of a message pipe",
    97: "follows with the pipes: a byte pipe",
    105: "follows with the relay: hvsock streams between guest and host sockets",
    106: "follows with the devices: negotiation of the integration components",
    107: "follows with the devices: stale and malformed answers to that negotiation",
    108: "follows with the devices: the keyboard",
    109: "follows with the devices: storvsp",
}
