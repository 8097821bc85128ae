"""Giving up root for good: the engine and the packet workers run as `_redirectd`."""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

PR_SET_NO_NEW_PRIVS = 38  # prctl(2)
PR_CAPBSET_DROP = 24
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


def drop(user: str) -> None:
    """Become ``user`` with no group but its own, no capability and no way back."""
    entry = account(user)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in range(LAST_CAPABILITY + 1):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    if sys.platform == "linux" and libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError("the kernel refused no_new_privs")
    if entry.pw_uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise PrivilegeError("root could be taken back after it was given up")
