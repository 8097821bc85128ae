"""Archives that come out the same, byte for byte, each time they are made (pure)."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """A file; ``mode`` without its type; ``link``: a symbolic link to there instead."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    link: str | None = None


def archive(members: Iterable[Member], epoch: int) -> bytes:
    """A .tgz with all folders, in the order of names, owned by root:wheel."""
    by_name: dict[str, Member] = {}
    for member in members:
        name = member.name.strip("/")
        if not name or ".." in name.split("/"):
            raise ValueError(f"not a name for an archive: {member.name!r}")
        if name in by_name:
            raise ValueError(f"{name} stands twice in the archive")
        by_name[name] = member
    folders = {
        "/".join(name.split("/")[:depth])
        for name in by_name
        for depth in range(1, name.count("/") + 1)
    }
    both = folders & by_name.keys()
    if both:
        raise ValueError(f"{sorted(both)[0]} is a file and a folder")
    packed = io.BytesIO()
    with (
        gzip.GzipFile(
            fileobj=packed, mode="wb", filename="", mtime=epoch, compresslevel=9
        ) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name in sorted(folders | by_name.keys()):
            member_or_none = by_name.get(name)
            info = tarfile.TarInfo(f"./{name}")
            info.mtime, info.uname, info.gname = epoch, "root", "wheel"
            if member_or_none is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif member_or_none.link is not None:
                info.type, info.mode = tarfile.SYMTYPE, 0o777
                info.linkname = member_or_none.link
                tar.addfile(info)
            else:
                info.mode, info.size = member_or_none.mode, len(member_or_none.data)
                tar.addfile(info, io.BytesIO(member_or_none.data))
    return packed.getvalue()
