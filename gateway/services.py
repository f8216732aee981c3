"""What runs beside the answering of requests: the address command, DHCP leases, the owner's socket, metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from .config import Endpoint, GatewayConfig
from .control import ControlServer
from .dhcp import LeaseWatch
from .metrics import GatewayMetrics, MetricsServer
from .operations import OperatorDesk
from .system import System
from .wan import CommandWatch


class Services:
    """Those that the configuration names, from `start` to `stop`."""

    def __init__(
        self,
        config: GatewayConfig,
        desk: OperatorDesk,
        system: System,
        *,
        on_address: Callable[[str | None], None],
        on_host_gone: Callable[[str], None],
    ) -> None:
        self._config = config
        self._system = system
        self._on_address = on_address
        self._on_host_gone = on_host_gone
        self._log = structlog.get_logger(__name__)
        self._tasks: list[asyncio.Task[None]] = []
        socket, metrics = config.control.socket, config.metrics.listen
        self._control = None if socket is None else ControlServer(socket, desk)
        self._metrics = None if metrics is None else MetricsServer(metrics, GatewayMetrics(desk.figures))

    @property
    def metrics_endpoint(self) -> Endpoint | None:
        """Where Prometheus asks, with the port that was taken for port 0."""
        return None if self._metrics is None else self._metrics.endpoint

    async def start(self) -> None:
        """Raises `StartError`."""
        if self._control is not None:
            await self._control.start()
        if self._metrics is not None:
            await self._metrics.start()
        external = self._config.external
        if external.command:
            self._spawn(CommandWatch(external.command, external.command_seconds, self._on_address).run(), "command")
        if self._config.dhcp is not None:
            self._spawn(LeaseWatch(self._config.dhcp, self._on_host_gone, self._system.unix).run(), "leases")

    async def stop(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        if self._control is not None:
            await self._control.stop()
        if self._metrics is not None:
            await self._metrics.stop()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"gateway {name}")
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._log.error("a part of the gateway died, the rest goes on", part=task.get_name(), exc_info=failure)
