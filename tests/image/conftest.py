"""Tests of whole appliances in QEMU: ``make image-test-ci``, ``make image-test``.

They are no part of ``make test`` (a guest takes minutes), so without IMAGE_TEST nothing
here is collected.

    IMAGE_TEST        "ci": one Debian guest; "all": every guest
    IMAGE             a finished Debian image to test instead of building one
    IMAGE_WORK        where the build keeps its finished steps (out/image-work)
    OPENBSD_RELEASE   directory with an OpenBSD release; without it those tests are
                      skipped, and counted
    OPENBSD_PACKAGES  directory with its packages, if that is not where a mirror has it
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "image-build"))

MODE = os.environ.get("IMAGE_TEST", "")
collect_ignore_glob = {"": ["test_*.py"], "ci": ["test_two_*.py"]}.get(MODE, [])
# sha512crypt of the console password of test images
PASSWORD = "a console for tests"
PASSWORD_HASH = (
    "$6$imagetestsalt$"
    "SqRewdja5ndu5PrjF9oXXu.vYx2mOzGJl0CA.y4MuzMO4rIbwOuuDNIhv7udfs/RC81Ope.EKOJaup.JnDbjN."
)

PASSWORD_BCRYPT = "$2b$08$imagetestsaltimageteseNbiKmbPywEHKYqrW5KYPvrZOxrw8542"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The closing line counts skipped tests; here is why, once for each reason."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        terminalreporter.write_line(f"not run: {count} image tests: {reason}")


def _packages(release: Path, version: str) -> Path:
    """Where a mirror that holds ``release`` has its packages."""
    for place in (release, release / version, release.parent):
        if (place / "packages/amd64").is_dir():
            return place / "packages/amd64"
    pytest.fail(f"there are no packages/amd64 near {release}: name them with OPENBSD_PACKAGES=DIR")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """``images("debian")``: an image, built once a session; steps are kept between runs."""
    folder = tmp_path_factory.mktemp("image")
    work = os.environ.get("IMAGE_WORK", str(ROOT / "out/image-work"))

    @cache
    def image(system: str) -> Path:
        given = os.environ.get("IMAGE")
        if given and system == "debian":
            return Path(given)
        target = folder / f"{system}.img"
        here = Path(__file__).parent
        text = (here / "gateway.toml").read_text()
        specific = ["--kernel", "cloud"]
        password = PASSWORD_HASH
        if system == "openbsd":
            source = os.environ.get("OPENBSD_RELEASE")
            if not source:
                pytest.skip("no OpenBSD release at hand (OPENBSD_RELEASE=DIR)")
            version = os.environ.get("OPENBSD_VERSION", "7.8")
            packages = os.environ.get("OPENBSD_PACKAGES") or str(_packages(Path(source), version))
            specific = ["--release", source, "--packages", packages, "--version", version]
            password = PASSWORD_BCRYPT
            text = text.replace("eth", "vio")
        (folder / "password").write_text(password)
        (folder / "gateway.toml").write_text(text)
        build = subprocess.Popen(
            [
                sys.executable, ROOT / "image-build/build", system, *specific,
                "--config", folder / "gateway.toml", "--settings", here / "redirectd.toml",
                "--console-password", folder / "password", "--work", work, "-o", target,
            ],
        )  # fmt: skip
        try:
            assert build.wait() == 0, f"the {system} image could not be built"
        finally:
            build.terminate()  # interrupted: it ends what it started
            build.wait(60)
        return target

    yield image
    for leftover in folder.glob("*.img*"):
        leftover.unlink()
