"""The roles of openbsd.md, with its addresses, as entries: one golden file each.

LP and NP are the ports of the recorded transcript (37403, 57510).
"""

from __future__ import annotations

from appliance.rewrite.flow import Flow
from appliance.rewrite.redirect import Entry
from pfconf.anchor import (
    Layout,
    divert_mixed,
    divert_out,
    divert_pmtu,
    entry_rules,
    guard,
    in_rule,
    lan_rules,
    mss_clamp,
    old_address_udp,
    out_rule,
    reservation_guard,
)
from pfconf.rule import render

ID = "0123456789abcdef0123456789abcdef"
LP, NP = 37403, 57510
EXT = Layout("ext", labels=False)

LAN = Flow.of("192.168.1.5", LP, "10.8.0.2", 5000)
#: B's side of the connection before and after its move
OLD = Flow.of("10.9.0.2", NP, "10.8.0.2", 5000)
NEW = Flow.of("10.9.0.77", NP, "10.8.0.2", 5000)
NEW6 = Flow.of("fd07::77", NP, "fd07::1", 5000)
OLD6 = Flow.of("fd07::2", NP, "fd07::1", 5000)
#: A moved as well, to 10.8.0.99
BOTH = Flow.of("10.9.0.77", NP, "10.8.0.99", 5001)
#: A is itself a gateway, with a server behind it
SERVER = Flow.of("172.16.0.9", 80, "10.9.0.2", NP)


def entry(
    birth: Flow,
    wire: Flow | None,
    inside: Flow | None = None,
    *,
    local: bool = True,
    opened: bool = True,
    wires: tuple[Flow, ...] = (),
    stale: tuple[Flow, ...] = (),
    path: str = "kernel",
) -> Entry:
    return Entry(
        ID,
        birth,
        inside or birth,
        local,
        opened,
        wires or ((wire,) if wire else (birth,)),
        wire,
        stale,
        "divert" if path == "divert" else "kernel",
    )


GATEWAY = entry(OLD, NEW, LAN, local=False)
HOST = entry(OLD, NEW)
CORRESPONDENT = entry(OLD.reversed(), NEW.reversed(), opened=False)
FORWARD = entry(OLD.reversed(), NEW.reversed(), SERVER, local=False, opened=False)
HELD = entry(OLD, None, LAN, local=False, wires=(NEW, OLD))
HOST6 = entry(OLD6, NEW6)
CORRESPONDENT6 = entry(OLD6.reversed(), NEW6.reversed(), opened=False)


def both_on_one_interface() -> str:
    return render(entry_rules(entry(OLD, BOTH, LAN, local=False), EXT))


ROLES: dict[str, str] = {
    "gateway-moved": render(entry_rules(GATEWAY, EXT)),
    "gateway-moved-labelled": render(entry_rules(GATEWAY, Layout("ext"))),
    "gateway-moved-lan": render(entry_rules(GATEWAY, Layout("ext", lan="lan", labels=False))),
    "host-moved": render(entry_rules(HOST, EXT)),
    "correspondent-host": render(entry_rules(CORRESPONDENT, EXT)),
    "correspondent-forward": render(entry_rules(FORWARD, EXT)),
    "both-moved-gateway": both_on_one_interface(),
    "both-moved-host": render(entry_rules(entry(OLD, BOTH), EXT)),
    "guard": render([guard(NEW, "ext")]),
    "stale": render(entry_rules(entry(OLD, NEW, LAN, local=False, stale=(OLD,)), EXT)),
    "held": render(entry_rules(HELD, Layout("ext", hold_port=701, labels=False))),
    "held-dropped": render(entry_rules(HELD, EXT)),
    "back-at-first-address": render(entry_rules(entry(OLD, OLD, stale=(NEW,)), EXT)),
    "divert-gateway": render(entry_rules(entry(OLD, NEW, LAN, local=False, path="divert"), EXT)),
    "divert-gateway-lan": render(lan_rules(LAN, "lan")),
    "divert-host": render(entry_rules(entry(OLD, NEW, path="divert"), EXT)),
    "divert-host-mixed": render(divert_mixed(OLD, NEW, "ext", 700)),
    "divert-correspondent": render(
        entry_rules(
            entry(OLD.reversed(), NEW.reversed(), opened=False, path="divert"),
            Layout("ifnew", "ifold", labels=False),
        )
    ),
    "divert-syn": render([divert_out(LAN, "ext", 700, max_mss=1440)]),
    "divert-ipv6": render(
        [
            *entry_rules(entry(OLD6, NEW6, path="divert"), EXT),
            divert_pmtu(NEW6.local.addr, "ext", 700),
        ][:3]
    ),
    "ipv6-host-moved": render(entry_rules(HOST6, EXT)),
    "ipv6-correspondent": render(entry_rules(CORRESPONDENT6, EXT)),
    "mss-clamp": render([mss_clamp("ext", 1440), mss_clamp("ext", 1420, 6)]),
    "reservation-guard": render([reservation_guard(NEW, "ext", ID)]),
    "old-address-udp": render([old_address_udp(OLD.local._replace(port=4000), 4000, "ext")]),
    "a-day-without-traffic": render(
        entry_rules(GATEWAY, Layout("ext", state_options=("no-sync", "tcp.opening 86400")))
    ),
    "any-interface": render([out_rule(LAN, NEW, None), in_rule(LAN, NEW, None, False)]),
}
