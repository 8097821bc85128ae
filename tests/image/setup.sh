#!/bin/bash
# Installs the Debian packages that building and testing images takes, if any is missing.
set -euo pipefail
packages=(
    qemu-system-x86                                   # guests
    mmdebstrap squashfs-tools e2fsprogs               # the Linux image
    dosfstools mtools fdisk syslinux syslinux-common  # its disk
    xorriso                                           # the disc of sets for OpenBSD
    chromium openssh-client openssh-server curl       # what the neighbours of a guest run
)
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "image-test: installing Debian packages: ${missing[*]}"
install=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 install "${missing[@]}")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
as_root "${install[@]}" >"$log" 2>&1 || {
    as_root apt-get -qq update
    as_root "${install[@]}" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
}
