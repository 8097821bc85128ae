"""Anything in any order: moves of both ends, crashes, bad networks; then all must be well."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.rewrite.flow import Endpoint, Flow

from .sim import PORT, Host, Net, introduce, talk

HOSTS = st.sampled_from(["alice", "bob"])
HOME = {"alice": "198.51.100.2", "bob": "203.0.113.2"}
NETS = {"alice": "198.51.100", "bob": "203.0.113"}
WAIT = st.integers(0, 80).map(lambda n: n / 1000)
STEP = st.one_of(
    st.tuples(st.just("move"), HOSTS, st.integers(2, 6), WAIT),
    st.tuples(st.just("gone"), HOSTS, st.just(0), WAIT),
    st.tuples(st.just("second"), HOSTS, st.integers(2, 6), WAIT),
    st.tuples(st.just("crash"), HOSTS, st.integers(0, 12), WAIT),
    st.tuples(st.just("kill"), HOSTS, st.just(0), WAIT),
    st.tuples(st.just("loss"), HOSTS, st.integers(0, 9), WAIT),
    st.tuples(st.just("wait"), HOSTS, st.integers(1, 40), WAIT),
    st.tuples(st.just("rekey"), HOSTS, st.just(0), WAIT),
    st.tuples(st.just("open"), HOSTS, st.sampled_from([0, 20]), WAIT),
    st.tuples(st.just("close"), HOSTS, st.just(0), WAIT),
    st.tuples(st.just("operator"), HOSTS, st.integers(2, 6), WAIT),
    st.tuples(st.just("unusable"), HOSTS, st.integers(0, 1), WAIT),
)


def scene(seed: int, count: int) -> tuple[Net, dict[str, Host], list[Flow]]:
    net = Net(seed)
    net.plain_ports.add(23)
    hosts = {name: Host(net, name, addr) for name, addr in HOME.items()}
    a, b = hosts["alice"], hosts["bob"]
    introduce(a, b)
    for host, other in ((a, "bob"), (b, "alice")):
        assert host.core
        host.core.set_dns_name(next(iter(host.disk_peers)), other, net.now)
        host.drain()
    births = [
        b.connect(HOME["bob"], 40000 + n, a, HOME["alice"], 22).reversed() for n in range(count)
    ]
    births.append(a.connect(HOME["alice"], 50000, b, HOME["bob"], 873))
    net.run_until(lambda: len(a.kernel) == len(b.kernel) == count + 1, limit=60)
    return net, hosts, births


def publish(hosts: dict[str, Host]) -> None:
    """What a DNS server would say (dynamic DNS follows the address)."""
    for name, host in hosts.items():
        found = [Endpoint(addr, PORT) for addr in reversed(host.addresses)]
        for other in hosts.values():
            other.resolver[name] = found


def one(net: Net, hosts: dict[str, Host], step: tuple[str, str, int, float]) -> None:
    what, name, number, wait = step
    host = hosts[name]
    if what == "move":
        host.readdress(f"{NETS[name]}.{number}")
    elif what == "gone":
        host.readdress()
    elif what == "second":
        host.readdress(*dict.fromkeys([*map(str, host.addresses), f"{NETS[name]}.{number}"]))
    elif what == "crash":
        host.crash_in = number
    elif what == "kill" and host.core:
        host.stop()
        net.at(net.now + 0.3, lambda: host.core or host.start())
    elif what == "loss":
        net.loss = number / 10
    elif what == "wait":
        net.run(number)
    elif what == "open":
        _open(hosts, name, number)
    elif what == "close":
        _close(hosts)
    elif what == "operator" and host.core:
        to = ip_address(f"{NETS[name]}.{number}")
        if to in host.addresses and host.addresses[to].usable:
            host.core.move(to, None, net.now)
            host.drain()
    elif what == "unusable":
        for addr in list(host.addresses)[:1]:
            host.address(str(addr), usable=bool(number))
    elif what == "rekey" and host.core:
        for peer in list(host.core.world.peers.values()):
            host.core._at(net.now)
            host.core.links.renew(peer)
        host.drain()
    publish(hosts)
    net.run(wait)


def _open(hosts: dict[str, Host], name: str, age: int) -> None:
    """One more connection, from where the host is to where the other one is."""
    host, other = hosts[name], hosts["bob" if name == "alice" else "alice"]
    if host.addresses and other.addresses:
        near, far = (str(next(iter(h.addresses))) for h in (host, other))
        port = 42000 + len(host.done) % 1000
        if Flow.of(near, port, far, 23) not in host.ends:
            host.connect(near, port, other, far, 23, age)


def _close(hosts: dict[str, Host]) -> None:
    """The youngest of those connections ends at both ends."""
    for host in hosts.values():
        extra = [f for f in host.ends if 23 in (f.local.port, f.remote.port)]
        for flow in extra[-1:]:
            for each in hosts.values():
                for end in (flow, flow.reversed()):
                    if end in each.ends:
                        each.close(end)


@given(st.integers(0, 10**6), st.lists(STEP, max_size=14))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happened_the_connections_live(
    seed: int, steps: list[tuple[str, str, int, float]]
) -> None:
    net, hosts, births = scene(seed, 2)
    a, b = hosts["alice"], hosts["bob"]
    for step in steps:
        one(net, hosts, step)
    net.loss = 0.0
    for name, host in hosts.items():
        host.crash_in = None
        usable = [addr for addr, local in host.addresses.items() if local.usable]
        host.addresses = {addr: host.addresses[addr] for addr in usable}
        host.readdress(*(usable or [HOME[name]]))
    publish(hosts)
    net.run(1)
    for host in hosts.values():
        host.crash_in = None
    net.run(65)  # twice the longest back-off
    for birth in births:
        talk(a, birth, b)
    assert net.violations == []
    assert a.sees("alert") == b.sees("alert") == []
    # nothing remains of it
    for host in hosts.values():
        for birth in list(host.ends):
            host.close(birth)
    net.run(70)
    for host in hosts.values():
        assert [host.kernel, host.disk_bindings, host.parked, host.reserved] == [{}, {}, set(), {}]
        assert host.core
        assert not any(p.ours for p in host.core.world.peers.values())
    assert ip_address(HOME["alice"])
