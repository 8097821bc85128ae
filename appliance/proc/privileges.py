"""Giving up root for good: the engine and the packet workers run as `_redirectd`."""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from collections.abc import Iterable

PR_SET_NO_NEW_PRIVS = 38  # prctl(2)
PR_CAPBSET_DROP = 24
PR_SET_KEEPCAPS = 8
CAP_NET_ADMIN = 12  # capabilities(7)
_CAPABILITY_VERSION_3 = 0x20080522
LAST_CAPABILITY = 63  # the kernel answers EINVAL past its own last one


class PrivilegeError(Exception):
    """The user does not exist, or the kernel kept a privilege."""


def account(user: str) -> pwd.struct_passwd:
    """The passwd entry; PrivilegeError names the remedy."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise PrivilegeError(
            f"user {user!r} does not exist: create it (useradd --system {user}) "
            "or name another one as 'user' in redirectd.toml"
        ) from None


def drop(user: str, keep: Iterable[int] = ()) -> None:
    """Become ``user`` with no group but its own, no capability but those to ``keep`` (on
    Linux), and no way back."""
    entry = account(user)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in range(LAST_CAPABILITY + 1):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        if keep and libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0:
            raise PrivilegeError("the kernel refused to keep a capability")
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    if sys.platform == "linux" and keep:
        _hold_only(libc, keep)
    if sys.platform == "linux" and libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError("the kernel refused no_new_privs")
    if entry.pw_uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise PrivilegeError("root could be taken back after it was given up")


def _hold_only(libc: ctypes.CDLL, capabilities: Iterable[int]) -> None:
    """capset(2): permitted and effective are these, inheritable is nothing."""
    bits = sum(1 << number for number in set(capabilities))
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if libc.capset(header, data) != 0:
        raise PrivilegeError("the kernel refused to keep a capability")
