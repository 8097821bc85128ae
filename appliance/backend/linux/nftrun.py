"""The nft command: rules as text."""

from __future__ import annotations

import subprocess

from ..api import BackendError


def run_nft(script: str) -> None:
    """One transaction; BackendError carries nft's message."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=script, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise BackendError("nft is not installed: install the package nftables") from None
    if done.returncode != 0:
        raise BackendError(f"nft refused our rules: {done.stderr.strip()[:2000]}")
