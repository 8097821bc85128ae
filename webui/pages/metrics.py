"""/metrics for Prometheus: numbers only, for whoever has the token."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

from flask import Blueprint, Response, abort, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..client import DaemonDown
from ..context import daemon, page_of
from ..daemon import Status

blueprint = Blueprint("metrics", __name__)


class _Gauges(Collector):
    """The daemon's state as gauges; with ``status`` None only that it is down."""

    def __init__(self, status: Status | None) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            "redirectd_up", "1: the daemon answers.", value=float(status is not None)
        )
        if status is None:
            return
        yield GaugeMetricFamily(
            "redirectd_start_time_seconds", "When the daemon started.", value=status.since
        )
        connections = GaugeMetricFamily(
            "redirectd_connections", "TCP connections by state.", labels=["state"]
        )
        for state, count in status.connections.items():
            connections.add_metric([state], count)
        yield connections
        peers = GaugeMetricFamily("redirectd_peers", "Known hosts by state.", labels=["state"])
        for state, count in status.peers.items():
            peers.add_metric([state], count)
        yield peers
        yield GaugeMetricFamily(
            "redirectd_warnings", "Things the owner should look at.", value=len(status.warnings)
        )
        move = status.last_move
        if move is not None:
            yield GaugeMetricFamily(
                "redirectd_last_move_time_seconds", "When an address last changed.", value=move.time
            )
            yield GaugeMetricFamily(
                "redirectd_last_move_connections",
                "Connections that the last address change carried over.",
                value=move.connections,
            )
            if move.handover_ms is not None:
                yield GaugeMetricFamily(
                    "redirectd_last_move_handover_seconds",
                    "How long the last address change took.",
                    value=move.handover_ms / 1000,
                )


@blueprint.get("/metrics")
def show() -> Response:
    expected = f"Bearer {page_of().credentials.metrics_token}"
    offered = request.headers.get("Authorization", "")
    if not hmac.compare_digest(offered.encode(), expected.encode()):
        abort(Response("A token is needed.\n", 401, {"WWW-Authenticate": "Bearer"}))
    status: Status | None
    try:
        status = daemon().status()
    except DaemonDown:
        status = None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gauges(status))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
