# SPDX-License-Identifier: GPL-2.0-or-later
"""How many connections may wait at each socket that listens: the kernel tells it (NETLINK_SOCK_DIAG), /proc does not.

Sources: sock_diag(7); Linux 6.12 include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h, unix_diag.h,
net/ipv4/tcp_diag.c (tcp_diag_get_info), net/unix/diag.c (sk_diag_show_rqlen).
"""

from __future__ import annotations

import enum
import os
import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final

__all__ = ["Family", "backlogs"]

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_AND_DUMP: Final = 0x301  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR: Final = 2  # NLMSG_ERROR
_DONE: Final = 3  # NLMSG_DONE
_LISTENS: Final = 1 << 10  # TCP_LISTEN, which sockets of AF_UNIX have, too
_SHOW_QUEUES: Final = 0x10  # UDIAG_SHOW_RQLEN
_QUEUES: Final = 4  # UNIX_DIAG_RQLEN

# All in the processor's byte order, but for ports and addresses, which are not looked at.
_HEAD: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_STATUS: Final = struct.Struct("=i")  # nlmsgerr: error
_INET_REQUEST: Final = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states, id
_INET_ANSWER: Final = struct.Struct("=4x48x4xIIII")  # inet_diag_msg: rqueue, wqueue, uid, inode
_UNIX_REQUEST: Final = struct.Struct("=BB2xIII8x")  # unix_diag_req: family, protocol, states, inode, show
_UNIX_ANSWER: Final = struct.Struct("=4xI8x")  # unix_diag_msg: inode
_ATTRIBUTE: Final = struct.Struct("=HH")  # nlattr: length, type
_TWO: Final = struct.Struct("=II")  # unix_diag_rqlen: rqueue, wqueue
_ALIGNED: Final = 4
_BUFFER: Final = 1 << 16
_SECONDS: Final = 2.0


class Family(enum.Enum):
    """Kinds of sockets that the kernel is asked for apart."""

    TCP = enum.auto()
    UNIX = enum.auto()


def backlogs(families: Collection[Family]) -> dict[int, int]:
    """Of those sockets of this network, by their inodes.

    :raises OSError: the kernel does not tell
    """
    found: dict[int, int] = {}
    for family in (socket.AF_INET, socket.AF_INET6) if Family.TCP in families else ():
        for body in _dumped(_INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LISTENS)):
            _, most, _, inode = _INET_ANSWER.unpack_from(body)
            found[inode] = most
    if Family.UNIX in families:
        for body in _dumped(_UNIX_REQUEST.pack(socket.AF_UNIX, 0, _LISTENS, 0, _SHOW_QUEUES)):
            for kind, value in _attributes(body[_UNIX_ANSWER.size :]):
                if kind == _QUEUES:
                    found[_UNIX_ANSWER.unpack_from(body)[0]] = _TWO.unpack_from(value)[1]
    return found


def _dumped(request: bytes) -> Iterator[bytes]:
    """Bodies of the messages that answer a request."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_SECONDS)
        head = _HEAD.pack(_HEAD.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 1, 0)
        kernel.send(head + request)
        while True:
            data = kernel.recv(_BUFFER)
            while data:
                length, kind, *_ = _HEAD.unpack_from(data)
                body, data = data[_HEAD.size : length], data[-(-length // _ALIGNED) * _ALIGNED :]
                if kind in (_DONE, _ERROR) and (number := -_STATUS.unpack_from(body)[0]):
                    raise OSError(number, os.strerror(number))
                if kind == _DONE:
                    return
                yield body


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[-(-max(length, _ATTRIBUTE.size) // _ALIGNED) * _ALIGNED :]
