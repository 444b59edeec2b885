"""Several gateway processes on one listening socket: a crashed one restarts, and they shut down together."""

from __future__ import annotations

import socket
import sys

import msgspec

from coord import logs
from coord.config import Settings
from coord.gateway.server import bind, url_of
from coord.up.programs import GATEWAY, GATEWAY_DRAIN_S, child_environ
from coord.up.shutdown import Shutdown
from coord.up.supervisor import GaveUp, ManagedProgram, ProgramEvent, Supervisor

log = logs.get_logger()

#: Exit code of a gateway that cannot start as configured.
UNUSABLE = 2


async def run_gateways(settings: Settings, count: int, shutdown: Shutdown) -> bool:
    """Run gateway processes until shutdown; return False if they cannot start.

    The socket is this process's: while a gateway restarts, connections wait for the others.

    Args:
        settings: of the gateways.
        count: number of processes.
        shutdown: graceful, or forced.

    Raises:
        ConfigError: the address must not or cannot be bound.
    """
    with bind(settings) as listener:
        url = url_of(listener)
        log.info("gateways.started", url=url, dashboard=f"{url}/ui", workers=count)
        programs = [_program(settings, number, listener) for number in range(1, count + 1)]
        try:
            await Supervisor(programs, _log_event, gives_up=lambda event: event.code == UNUSABLE).run(shutdown)
        except GaveUp as error:
            log.error("gateways.stopped", error=str(error))  # noqa: TRY400 (the gateway's own error is in the log)
            return False
    log.info("gateways.stopped")
    return True


def _program(settings: Settings, number: int, listener: socket.socket) -> ManagedProgram:
    own = msgspec.structs.replace(settings, gateway_port=listener.getsockname()[1])
    inherited = str(listener.fileno())
    return ManagedProgram(
        name=f"{GATEWAY}-{number}",
        command=(sys.executable, "-P", "-m", "coord.cli", "gateway", "--watch-stdin", "--listener", inherited),
        environ=child_environ(own),
        drain_s=GATEWAY_DRAIN_S,
        descriptors=(listener.fileno(),),
    )


def _log_event(event: ProgramEvent) -> None:
    if event.what == "started":
        log.info("gateway.process_started", name=event.name, pid=event.pid)
    else:
        log.warning(
            "gateway.process_ended",
            how=event.what,
            name=event.name,
            pid=event.pid,
            code=event.code,
            again_in_s=event.again_in_s,
            reason=event.reason,
        )
