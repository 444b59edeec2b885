"""How long a gateway may take to shut down: every request that it has accepted gets its response.

The limit follows from the settings, because a body may arrive slowly and Redis may be slow. Long polls, streams and the
waits for workers end early, so a shutdown usually takes a second.
"""

from __future__ import annotations

from coord.config import Settings

#: Seconds for a head to arrive, from its first byte.
HEAD_S = 10.0
#: Seconds for which a connection without a request stays open: a request may be on its way.
LINGER_S = 1.0
#: Seconds after which the waits for a worker end, and again those that began meanwhile: the default of a write's wait.
WAIT_S = 2.0
#: The most round trips of a request, one after the other, each of which may take as long as Redis may.
ROUND_TRIPS = 5
#: The most waits of a request for a worker.
WAITS = 2
#: Seconds that a process gets to end after its last request.
EXIT_S = 5.0


def request_limit_s(settings: Settings) -> float:
    """Return the seconds within which each request has its response that came before or during the shutdown."""
    handling_s = ROUND_TRIPS * settings.gateway_redis_s + WAITS * WAIT_S
    return LINGER_S + HEAD_S + settings.gateway_body_s + handling_s


def process_limit_s(settings: Settings) -> float:
    """Return the seconds after which a process that shuts down may be killed."""
    return request_limit_s(settings) + EXIT_S
