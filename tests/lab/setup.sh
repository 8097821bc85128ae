#!/bin/bash
# Makes a Debian machine ready for the demo (setup.sh demo) or the tests (setup.sh test):
# Debian packages that are missing, and the virtual environment in .venv.  With "install":
# only the packages that an installed redirectd needs.
# Says what it does; does nothing, within a blink, when all is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${1:-demo}

packages=(
    nftables iproute2 util-linux   # the daemon's packet path, the lab's namespaces
    python3-venv python3-dev gcc libpcap-dev libc6-dev   # pypcap is built from source
)
if [ "$what" != install ]; then
    packages+=(iputils-ping)
    packages+=(openssh-server openssh-client rsync postgresql)   # whose connections are kept
fi
if [ "$what" = test ]; then
    packages+=(busybox dnsmasq-base fonts-dejavu-core)  # DHCP in the lab, readable screenshots
    packages+=(mandoc chromium conntrack)   # man page lint, the admin page's tests, checks
    packages+=(tshark)   # what others make of our TCP-AO
fi

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

if command -v dpkg-query >/dev/null; then
    missing=()
    for package in "${packages[@]}"; do
        installed "$package" || missing+=("$package")
    done
else
    missing=()
    echo "setup: not a Debian system; please see to these yourself: ${packages[*]}"
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing Debian packages: ${missing[*]}"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || {
        echo "setup: that needs root, and there is no sudo: run make as root" >&2
        exit 1
    }
    # The lab starts servers of its own inside its namespaces.  What we install must not
    # start serving this machine's network: no service starts, no database is made.
    undo=()
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
        as_root chmod 755 /usr/sbin/policy-rc.d
        undo+=(/usr/sbin/policy-rc.d)
    fi
    if ! installed postgresql-common; then
        as_root mkdir -p /etc/postgresql-common/createcluster.d
        echo 'create_main_cluster = false' |
            as_root tee /etc/postgresql-common/createcluster.d/redirectd-lab.conf >/dev/null
        undo+=(/etc/postgresql-common/createcluster.d/redirectd-lab.conf)
    fi
    trap '[ ${#undo[@]} = 0 ] || as_root rm -f "${undo[@]}"' EXIT
    apt=(apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    install=(env DEBIAN_FRONTEND=noninteractive "${apt[@]}" install "${missing[@]}")
    if ! as_root "${install[@]}" --simulate >/dev/null 2>&1; then
        echo "setup: apt-get update (package lists are missing or old)"
        as_root apt-get -qq update
    fi
    log=$(mktemp)
    if ! as_root "${install[@]}" >"$log" 2>&1; then
        # A list may name a version that the archive has replaced since.
        echo "setup: apt-get update, then once more"
        as_root apt-get -qq update
        as_root "${install[@]}" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
    fi
    rm -f "$log"
    if command -v systemctl >/dev/null; then
        for pair in openssh-server:ssh postgresql:postgresql; do
            case " ${missing[*]} " in
            *" ${pair%%:*} "*)
                as_root systemctl -q disable "${pair#*:}" 2>/dev/null || true
                echo "setup: ${pair%%:*} was installed for the lab and stays switched off" ;;
            esac
        done
    fi
fi

[ "$what" != install ] || exit 0

stamp=.venv/.stamp-$what
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    if [ ! -x .venv/bin/python ]; then
        echo "setup: making the virtual environment .venv ($(python3 --version))"
        python3 -m venv .venv
    fi
    extras=; [ "$what" = demo ] || extras='[test]'
    echo "setup: installing redirectd$extras and what it needs into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --use-pep517 \
        -e ".$extras"
    touch "$stamp"
fi
