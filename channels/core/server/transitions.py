"""What becomes of a server's channel, as tables by its state: for each message of a guest, and when the connection is lost."""

from __future__ import annotations

from .table import ChannelState

_S = ChannelState
_IGNORED = ""

Table = dict[ChannelState, ChannelState | str]

OPEN_TABLE: Table = {
    _S.CLOSED: _S.OPENING,
    _S.OPENING: "it is open already",
    _S.OPEN: "it is open already",
    _S.CLOSING: _S.CLOSING_REOPEN,
    _S.CLOSING_REOPEN: "it is open already",
    _S.REVOKED: _IGNORED,
    _S.REOFFERED: _IGNORED,
}
OPEN_RESERVED_TABLE: Table = OPEN_TABLE | {
    _S.CLOSING: "it is still closing",
    _S.CLOSING_REOPEN: "it is still closing",
}
CLOSE_TABLE: Table = {
    _S.CLOSED: "it is not open",
    _S.OPENING: "it is not open yet",
    _S.OPEN: _S.CLOSING,
    _S.CLOSING: "it is not open any more",
    _S.CLOSING_REOPEN: "it is not open yet",
    _S.REVOKED: _IGNORED,
    _S.REOFFERED: _IGNORED,
}
RELEASE_TABLE: Table = {
    _S.CLOSED: _S.CLIENT_RELEASED,
    _S.OPENING: "it is being opened",
    _S.OPEN: "it is open",
    _S.CLOSING: _S.CLOSING_CLIENT_RELEASE,
    _S.CLOSING_REOPEN: "it is being opened",
    _S.REVOKED: _S.CLIENT_RELEASED,
    _S.REOFFERED: _S.CLOSED,
}
"""State -> what a guest's message makes of it, or why it cannot; an empty reason is not worth a word."""

CONNECTION_LOST = {
    _S.CLIENT_RELEASED: _S.CLIENT_RELEASED,
    _S.CLOSED: _S.CLIENT_RELEASED,
    _S.OPENING: _S.OPENING_CLIENT_RELEASE,
    _S.OPEN: _S.CLOSING_CLIENT_RELEASE,
    _S.CLOSING: _S.CLOSING_CLIENT_RELEASE,
    _S.CLOSING_REOPEN: _S.CLOSING_CLIENT_RELEASE,
    _S.REVOKED: _S.CLIENT_RELEASED,
    _S.REOFFERED: _S.CLIENT_RELEASED,
    _S.OPENING_CLIENT_RELEASE: _S.OPENING_CLIENT_RELEASE,
    _S.CLOSING_CLIENT_RELEASE: _S.CLOSING_CLIENT_RELEASE,
}
