"""All targets: what each reads, where it starts from, how long its inputs may be, and which decoders it covers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from . import client, decoders, documents, inputs, integration, network, pairs_and_files, rings, server, storage

DECODED = 1024
"""Bytes of an input that is decoded once: four channel messages."""
PLAYED = 2048
"""Bytes of an input that is a script."""
PAGES = 4096
"""Bytes of an input that may be a page, or a script that fills a ring."""


class Target(NamedTuple):
    """A function from bytes to nothing, whose every exception is a defect."""

    name: str
    about: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    longest: int
    """Bytes of an input."""
    covers: tuple[str, ...]
    """The decoders that it calls, as `module:name`."""


TARGETS = {
    target.name: target
    for target in (
        Target(
            "channel-message",
            "a channel message from either side, under every agreement",
            decoders.channel_message,
            decoders.channel_message_seeds,
            DECODED,
            tuple(
                f"channels.protocol.{name}"
                for name in ("parse:parse_message", "parse:message_type_of", "parse:name_of", "wire:unpack")
            ),
        ),
        Target(
            "packet-strict",
            "a packet as hosts take it",
            decoders.packet_strict,
            decoders.packet_seeds,
            DECODED,
            ("channels.protocol.packet:parse_packet", "channels.protocol.packet:parse_shape"),
        ),
        Target(
            "packet-lenient",
            "a packet as guests take it",
            decoders.packet_lenient,
            decoders.packet_seeds,
            DECODED,
            ("channels.protocol.packet:parse_packet", "channels.protocol.packet:parse_shape"),
        ),
        Target(
            "gpa-ranges",
            "ranges of a GPADL or packet, and a transfer range in them",
            decoders.gpa_ranges,
            decoders.gpa_range_seeds,
            DECODED,
            ("channels.protocol.gparange:parse_gpa_ranges", "channels.protocol.gparange:resolve_transfer_range"),
        ),
        Target(
            "pipe-header",
            "a pipe's payload",
            decoders.pipe_header,
            decoders.pipe_header_seeds,
            DECODED,
            ("channels.protocol.packet:parse_pipe",),
        ),
        Target(
            "integration-message",
            "a message of an integration component, and its body by its type",
            integration.message,
            integration.message_seeds,
            PAGES,
            tuple(f"channels.protocol.integration.common:{name}" for name in ("parse_ic", "parse_negotiate")),
        ),
        Target(
            "integration-text",
            "a text in an area",
            pairs_and_files.text,
            pairs_and_files.text_seeds,
            DECODED,
            ("channels.protocol.integration.text:parse_text",),
        ),
        Target(
            "key-value-pair",
            "a body about a key",
            pairs_and_files.pair,
            pairs_and_files.pair_seeds,
            PAGES,
            ("channels.protocol.integration.kvp:parse_record",),
        ),
        Target(
            "ip-information-text",
            "an adapter's addresses as texts",
            pairs_and_files.ip_text,
            pairs_and_files.ip_text_seeds,
            pairs_and_files.LONGEST,
            ("channels.protocol.integration.kvp_ip:parse_ip_text",),
        ),
        Target(
            "ip-information-binary",
            "an adapter's addresses in binary",
            pairs_and_files.ip_binary,
            pairs_and_files.ip_binary_seeds,
            pairs_and_files.LONGEST,
            ("channels.protocol.integration.kvp_ip:parse_ip_binary",),
        ),
        Target(
            "file-copy",
            "a body of a file copy",
            pairs_and_files.file_copy,
            pairs_and_files.file_copy_seeds,
            pairs_and_files.LONGEST,
            tuple(f"channels.protocol.integration.file_copy:{name}" for name in ("parse_start", "parse_write")),
        ),
        Target(
            "snapshot",
            "a body of a snapshot",
            pairs_and_files.snapshot,
            pairs_and_files.snapshot_seeds,
            DECODED,
            ("channels.protocol.wire:unpack",),
        ),
        Target(
            "synic-structures",
            "message slots, timer payloads, hypercall inputs",
            decoders.synic_structures,
            decoders.synic_structure_seeds,
            DECODED,
            ("broker.hvdef.message:unpack", "broker.hvdef.hypercall:unpack"),
        ),
        Target(
            "keyboard",
            "a message of the keyboard, from either side",
            inputs.keyboard,
            inputs.keyboard_seeds,
            DECODED,
            tuple(f"channels.protocol.input.keyboard:parse_keyboard_{side}" for side in ("guest", "host")),
        ),
        Target(
            "mouse",
            "a message of the mouse, from either side",
            inputs.mouse,
            inputs.mouse_seeds,
            DECODED,
            tuple(f"channels.protocol.input.mouse:parse_mouse_{side}" for side in ("guest", "host")),
        ),
        Target(
            "hid-report",
            "a report descriptor, and reports that it lays out",
            inputs.hid_report,
            inputs.hid_report_seeds,
            DECODED,
            ("channels.protocol.input.hid:parse_report_descriptor",),
        ),
        Target(
            "explain",
            "anything, explained as any kind",
            decoders.explanation,
            decoders.explanation_seeds,
            2 + PAGES,
            ("channels.explain:explain",),
        ),
        Target(
            "server-machine",
            "a guest, devices and a backend",
            server.server_machine,
            server.server_seeds,
            PLAYED,
            ("channels.core.server.machine:receive", "channels.core.server.machine:restore"),
        ),
        Target(
            "client-machine",
            "a host and a user",
            client.client_machine,
            client.client_seeds,
            PLAYED,
            ("channels.core.client.machine:receive", "channels.core.client.machine:restore"),
        ),
        Target(
            "server-saved-state",
            "a server's document, and what follows its restore",
            documents.server_saved_state,
            documents.server_saved_state_seeds,
            PLAYED,
            (
                "channels.core.documents:decode",
                "channels.core.server.saved:decode",
                "channels.core.server.machine:restore",
            ),
        ),
        Target(
            "client-saved-state",
            "a client's document, and what follows its restore",
            documents.client_saved_state,
            documents.client_saved_state_seeds,
            PLAYED,
            (
                "channels.core.documents:decode",
                "channels.core.client.saved:decode",
                "channels.core.client.machine:restore",
            ),
        ),
        Target(
            "partition-saved-state",
            "a partition's document",
            documents.partition_saved_state,
            documents.partition_saved_state_seeds,
            PLAYED,
            ("broker.state:decode",),
        ),
        Target(
            "trace-file",
            "a trace",
            documents.trace_file,
            documents.trace_file_seeds,
            PAGES,
            ("broker.trace.file:read_trace",),
        ),
        Target(
            "conversation-file",
            "a recorded conversation, and what its replay would need",
            documents.conversation_file,
            documents.conversation_file_seeds,
            PAGES,
            tuple(f"broker.replay.conversation:{name}" for name in ("read_conversation", "decode_conversation")),
        ),
        Target(
            "ring-incoming-strict",
            "a host's consumer and a hostile producer",
            rings.incoming_strict,
            rings.incoming_seeds,
            PAGES,
            ("channels.ring.incoming:read", "channels.ring.incoming:read_batch"),
        ),
        Target(
            "ring-incoming-lenient",
            "a guest's consumer and a hostile producer",
            rings.incoming_lenient,
            rings.incoming_seeds,
            PAGES,
            ("channels.ring.incoming:read", "channels.ring.incoming:read_batch"),
        ),
        Target(
            "ring-outgoing",
            "a producer and a hostile consumer",
            rings.outgoing,
            rings.outgoing_seeds,
            PLAYED,
            (),
        ),
        Target(
            "ring-scattered",
            "either end over scattered pages, beside one buffer",
            rings.scattered,
            rings.scattered_seeds,
            PAGES,
            (),
        ),
        Target(
            "storage-command",
            "a SCSI command as each kind",
            storage.storage_command,
            storage.storage_command_seeds,
            DECODED,
            ("channels.protocol.storage.cdb:unpack",),
        ),
        Target(
            "storage-data",
            "what a disk tells, or is told",
            storage.storage_data,
            storage.storage_data_seeds,
            DECODED,
            (
                *(f"channels.protocol.storage.inquiry:parse_{name}" for name in ("block_limits", "inquiry", "page")),
                *(
                    f"channels.protocol.storage.parameters:parse_{name}"
                    for name in ("capacity", "luns", "mode", "unmap")
                ),
                "channels.protocol.storage.sense:parse_sense",
                "channels.protocol.storage.srb:parse_srb",
            ),
        ),
        Target(
            "storage-guest",
            "a guest that negotiates, and one request to a disk",
            storage.storage_guest,
            storage.storage_guest_seeds,
            DECODED,
            ("channels.protocol.storage.srb:parse_srb", "channels.protocol.storage.cdb:unpack"),
        ),
        Target(
            "network-nvsp",
            "an NVSP message from either side, and a host's table in it",
            network.nvsp_message,
            network.nvsp_message_seeds,
            DECODED,
            tuple(f"channels.protocol.network.nvsp:{name}" for name in ("parse_from_guest", "parse_from_host")),
        ),
        Target(
            "network-ranges",
            "the ranges of a packet to the guest",
            network.receive_ranges,
            network.receive_ranges_seeds,
            DECODED,
            ("channels.protocol.network.nvsp:parse_receive",),
        ),
        Target(
            "network-rndis",
            "an RNDIS control message from either side, and its information",
            network.rndis_control,
            network.rndis_control_seeds,
            DECODED,
            tuple(
                f"channels.protocol.network.rndis:{name}"
                for name in ("parse_control_from_guest", "parse_control_from_host")
            ),
        ),
        Target(
            "network-frames",
            "Ethernet frames in RNDIS data messages",
            network.frames,
            network.frames_seeds,
            DECODED,
            ("channels.protocol.network.frames:parse_frames",),
        ),
        Target(
            "network-oids",
            "structures of OIDs: receive scale, offload",
            network.oid_structures,
            network.oid_structures_seeds,
            DECODED,
            tuple(
                f"channels.protocol.network.oids:{name}"
                for name in ("parse_rss_capabilities", "parse_rss_table", "parse_wants_offload")
            ),
        ),
        Target("ring-pages", "a ring over pages that a guest names", rings.pages, rings.pages_seeds, DECODED, ()),
    )
}
"""By name, in the order in which they run."""


def find_target(name: str) -> Target:
    """A target by its name, or `module:function` for one from elsewhere. `LookupError` when there is none."""
    if name in TARGETS:
        return TARGETS[name]
    module, separator, function = name.partition(":")
    if not separator:
        raise LookupError(f"no target is called {name!r}; there are {', '.join(TARGETS)}, or any module:function")
    try:
        run = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"there is no target {name!r}: {error}") from None
    return Target(name, "from elsewhere", run, list, PLAYED, ())
