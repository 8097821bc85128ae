"""``make lab``: a small internet to play with by hand.

    laptop --+                 +-- net-a --+
             lan -- home ------+           +-- core -- net-c --[20 ms]-- server
    desktop -+                 +- (net-b) -+

A shell on each machine is one command away; everything goes when you leave.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from . import services, topologies
from .daemon import introduce
from .expose import ROOT
from .kernel import LabError
from .net import Lab

_RC = """
PS1='(lab) \\w\\$ '
on() {{ local host=$1; shift; nsenter --net=/run/netns/{lab}-$host -- "${{@:-bash}}"; }}
redirectctl() {{
    local host=$1; shift
    {python} -m appliance.redirectctl --socket {dir}/$host/run/control.sock "$@"
}}
ssh-server() {{ on laptop ssh {ssh} 192.0.2.9 "$@"; }}
move() {{
    on home ip addr add $2 brd + dev wan &&
    on home ip route replace default via ${{2%.*}}.1 dev wan metric 100 &&
    on home ip addr del $1 dev wan
}}
export PYTHONPATH={root}
cat <<TEXT

  on HOST COMMAND...          on laptop ping 192.0.2.9;  on home  (a shell there)
  ssh-server                  ssh from the laptop, through the gateway's NAT, to the server
  redirectctl HOST ...        redirectctl home show connections
  move OLD NEW                move 198.51.100.7/24 198.51.100.8/24   (the gateway's address)

  HOST is one of {hosts}.  A connection is bound once it is 10 s old.
  Logs: {dir}/HOST/redirectd.log    Leave with Ctrl-D.

TEXT
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make lab", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rtt", type=float, default=20, help="round trip in ms (20)")
    parser.add_argument("--plain", action="store_true", help="without redirectd")
    options = parser.parse_args()
    print((__doc__ or "").partition("\n\n")[2])
    with Lab() as lab:
        try:
            top = topologies.home(lab, rtt_ms=options.rtt)
            sshd = services.Sshd(top.server)
            if not options.plain:
                home = lab.daemon(top.home, interfaces={"inside": ["lan"], "outside": ["wan"]})
                introduce(home, lab.daemon(top.server))
        except LabError as error:
            print(f"the lab could not be built: {error}", file=sys.stderr)
            return 2
        rc = lab.dir / "bashrc"
        rc.write_text(
            _RC.format(
                lab=lab.name,
                dir=lab.dir,
                python=sys.executable,
                root=ROOT,
                ssh=" ".join(sshd.options()),
                hosts=", ".join(lab.hosts),
            )
        )
        subprocess.run(["bash", "--rcfile", str(rc), "-i"], cwd=Path.cwd(), env=os.environ)
    return 0


if __name__ == "__main__":
    sys.exit(main())
