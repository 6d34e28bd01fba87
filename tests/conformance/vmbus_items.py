"""The 109 items of the VMBus conformance list (`reference/vmbus.md` 7): those that no test covers yet, each with its reason.

Every other item is covered by a test that carries its number (`@pytest.mark.vmbus_item(7)`), in any folder of tests;
`test_vmbus_list.py` holds it so.
"""

from __future__ import annotations

TOTAL = 109

NOT_APPLICABLE: dict[int, str] = {}
