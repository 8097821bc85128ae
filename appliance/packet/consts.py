"""The numbers of WinDivert's API, under the names that pydivert gives them."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Layer(IntEnum):
    """Where packets are taken from; only the first two exist outside Windows."""

    NETWORK = 0
    NETWORK_FORWARD = 1
    FLOW = 2
    SOCKET = 3
    REFLECT = 4


class Flag(IntFlag):
    """How a handle behaves.

    SNIFF      copies, the packets themselves go on
    DROP       matching packets are dropped; nothing is received
    RECV_ONLY  ``send`` is refused: what is received is gone
    SEND_ONLY  ``recv`` is refused, nothing is diverted
    NO_INSTALL of no effect: there is no driver to install
    FRAGMENTS  inbound fragments as they come, before reassembly
    """

    DEFAULT = 0
    SNIFF = 0x0001
    DROP = 0x0002
    RECV_ONLY = 0x0004
    SEND_ONLY = 0x0008
    NO_INSTALL = 0x0010
    FRAGMENTS = 0x0020


class Param(IntEnum):
    """Limits of a handle's queue: packets, milliseconds, bytes."""

    QUEUE_LEN = 0
    QUEUE_TIME = 1
    QUEUE_SIZE = 2


class Direction(IntEnum):
    OUTBOUND = 0
    INBOUND = 1


class CalcChecksumsOption(IntFlag):
    """Checksums that :meth:`.packet.Packet.recalculate_checksums` leaves alone."""

    NO_IP_CHECKSUM = 1
    NO_ICMP_CHECKSUM = 2
    NO_ICMPV6_CHECKSUM = 4
    NO_TCP_CHECKSUM = 8
    NO_UDP_CHECKSUM = 16
    NO_REPLACE = 2048


class Protocol(IntEnum):
    """IANA protocol numbers."""

    HOPOPT = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ROUTING = 43
    FRAGMENT = 44
    AH = 51
    ICMPV6 = 58
    NONE = 59
    DSTOPTS = 60
