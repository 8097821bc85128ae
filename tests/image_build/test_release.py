"""A release that was tampered with, or is another one, stops the build before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import release
import signify
from stages import BuildError, Workshop

from . import releases


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(release, "KEYS", tmp_path / "keys")
    return tmp_path / "keys"


def collect(tmp_path: Path, source: Path, version: release.Version) -> Path:
    target = tmp_path / "got"
    with Workshop(tmp_path / "work") as shop:
        release.collect(shop, str(source), version, target)
    return target


@pytest.mark.parametrize("place", ["", "amd64", "7.8/amd64"])
def test_a_good_release_is_taken_whole_from_a_directory_or_a_mirrors_tree(
    tmp_path: Path, keys: Path, place: str
) -> None:
    version = releases.make(tmp_path / "r" / place, keys)
    got = collect(tmp_path, tmp_path / "r", version)
    assert {p.name for p in got.iterdir()} == {*release.needed(version), "SHA256.sig"}


@pytest.mark.parametrize("name", ["base78.tgz", "bsd.rd", "cd78.iso"])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, keys: Path, name: str) -> None:
    version = releases.make(tmp_path / "r", keys)
    with (tmp_path / "r" / name).open("ab") as file:
        file.write(b"!")
    with pytest.raises(BuildError, match=f"{name} is not what was signed"):
        collect(tmp_path, tmp_path / "r", version)


def test_a_changed_list_is_refused(tmp_path: Path, keys: Path) -> None:
    version = releases.make(tmp_path / "r", keys)
    path = tmp_path / "r" / "SHA256.sig"
    path.write_bytes(path.read_bytes().replace(b"bsd.rd", b"bsd.xx"))
    with pytest.raises(BuildError, match="signature is wrong"):
        collect(tmp_path, tmp_path / "r", version)


def test_a_list_signed_by_a_stranger_is_refused(tmp_path: Path, keys: Path) -> None:
    version = releases.make(tmp_path / "r", keys)
    message = signify.verify_embedded(
        signify.read_public_key(version.key_path), (tmp_path / "r/SHA256.sig").read_bytes()
    )
    releases.sign(tmp_path / "r", tmp_path / "strangers", message, version)
    with pytest.raises(BuildError, match="signature is wrong"):
        collect(tmp_path, tmp_path / "r", version)


@pytest.mark.parametrize("name", ["SHA256.sig", "base78.tgz"])
def test_a_missing_file_is_named(tmp_path: Path, keys: Path, name: str) -> None:
    version = releases.make(tmp_path / "r", keys)
    (tmp_path / "r" / name).unlink()
    with pytest.raises(BuildError, match=name):
        collect(tmp_path, tmp_path / "r", version)


def test_another_version_is_refused(tmp_path: Path, keys: Path) -> None:
    releases.make(tmp_path / "r", keys, "7.9")
    with pytest.raises(BuildError, match=r"openbsd-78-base\.pub is missing"):
        collect(tmp_path, tmp_path / "r", release.Version("7.8"))
    (keys / "openbsd-79-base.pub").rename(keys / "openbsd-78-base.pub")
    with pytest.raises(BuildError, match=r"no .*base78\.tgz"):
        collect(tmp_path, tmp_path / "r", release.Version("7.8"))


def test_a_wrong_key_tells_which_release_seems_to_lie_there(tmp_path: Path, keys: Path) -> None:
    releases.make(tmp_path / "r9", keys, "7.9")
    releases.make(tmp_path / "r8", keys, "7.8")
    with pytest.raises(BuildError, match=r"seems to be release 7\.9, not 7\.8"):
        collect(tmp_path, tmp_path / "r9", release.Version("7.8"))


@pytest.mark.parametrize("text", ["", "7", "78", "7.8.1", "../7.8", "7.8\n", "x.y"])
def test_a_version_is_written_like_7_8(text: str) -> None:
    with pytest.raises(BuildError, match="no OpenBSD version"):
        release.Version(text)


@pytest.mark.parametrize("version", ["7.8", "7.9"])
@pytest.mark.parametrize("kind", ["base", "pkg", "syspatch", "fw"])
def test_the_vendored_keys_are_keys_and_all_different(version: str, kind: str) -> None:
    folder = Path(release.__file__).parent / "keys"
    digits = version.replace(".", "")
    key = signify.read_public_key(folder / f"openbsd-{digits}-{kind}.pub")
    others = [
        signify.read_public_key(path).number
        for path in folder.glob("*.pub")
        if path.name != f"openbsd-{digits}-{kind}.pub"
    ]
    assert len(others) == 7
    assert key.number not in others
