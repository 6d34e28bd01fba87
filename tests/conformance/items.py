"""The 172 items of the SynIC conformance list: those that do not apply to this model, each with its reason.

Every other item is covered by a test that carries its number (`@pytest.mark.item(7)`); `test_list.py` holds it so.
"""

from __future__ import annotations

TOTAL = 172

NOT_APPLICABLE: dict[int, str] = {
    124: "32-bit register convention of x86 (EDX:EAX, EBX:ECX): the model takes parameters as values",
    127: "x86 privilege level and processor mode: guest code of the model has neither",
    129: "x86 input registers: the model takes parameters as values, which cannot change",
    154: "KVM internal: periodic ticks lost while KVM's slot is busy; the profiles and the kvm preset keep the due time",
    166: "QEMU internal: the port protocol of hyperv_testdev",
    167: "QEMU internal: hyperv_testdev's message handler and its -EAGAIN completions",
    168: "QEMU internal: hyperv_testdev's event handler",
    169: "QEMU internal: the single staging area; here the queue is bounded and its bound is a parameter",
    170: "QEMU internal: an assertion of hyperv_testdev",
    171: "QEMU internal: errno values of its handler lists; ConnectionIdInUse and close() are items 98 to 101",
    172: "KVM internal: errno values of KVM_HYPERV_EVENTFD",
}
