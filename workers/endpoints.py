"""HTTP requests to the endpoints of agents: bounded in time and size, without redirects.

With ``gateway_security``, a request goes to public addresses only, or to a network that a setting allows. The address
is checked where the socket is made, so it is the one that is really connected to, whatever a name resolves to.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Literal, NamedTuple

import aiohttp
import msgspec
from msgspec import UNSET, Struct, UnsetType

from coord import __version__
from coord.codec import BAD_JSON, decode_json
from coord.config import Settings
from coord.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Seconds of a whole request, however slowly its response arrives; below the time in which a task must be claimed.
TOTAL_S = 30.0
#: Bytes that the other fields of a report need beside the result.
ROOM_BYTES = 4_096
#: IPv6 addresses that translators map to IPv4 addresses (RFC 6052).
NAT64 = IPv6Network("64:ff9b::/96")
#: Networks that Python calls global and that lead to addresses nearby: site-local ones, translators of IPv4 (RFC 8215,
#: RFC 2765, RFC 4291), and the host of a virtual machine in one large cloud.
LOCAL = tuple(map(ip_network, ("fec0::/10", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96", "168.63.129.16/32")))
#: Statuses of an endpoint that has no handler for tasks, or no room for one.
NO_HANDLER, NO_ROOM = frozenset({404, 405, 501}), frozenset({429, 503})


class AddressRefused(OSError):
    """The address of an endpoint is not public, and no setting allows it."""


class AddressGuard:
    """Makes sockets to allowed addresses only.

    Args:
        networks: that are allowed besides public addresses.
    """

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = networks

    def check(self, address: str) -> None:
        """Raise ``AddressRefused`` unless an address is public or allowed."""
        outer = ip_address(address.partition("%")[0])
        inner = _embedded(outer)
        if any(inner in network or outer in network for network in self._networks):
            return
        is_local = any(inner in network for network in LOCAL)
        if not inner.is_global or inner.is_multicast or is_local:
            raise AddressRefused(f"the address {address} is not public; allow its network with COORD_PUSH_NETWORKS")

    def make_socket(self, found: tuple[Any, ...]) -> socket.socket:
        """Return a socket for an address of ``getaddrinfo``; raises ``AddressRefused``."""
        family, kind, protocol, _, address = found
        self.check(str(address[0]))
        return socket.socket(family, kind, protocol)


def _embedded(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo is not None else address)


def parse_networks(text: str | None) -> tuple[Network, ...]:
    """Return the networks of ``push_networks``.

    Raises:
        ConfigError: names the part that is none.
    """
    networks: list[Network] = []
    for part in filter(None, map(str.strip, (text or "").split(","))):
        try:
            networks.append(ip_network(part))
        except ValueError as error:
            raise ConfigError(
                f"COORD_PUSH_NETWORKS={text!r}: {part!r} is not a network: {error}; write for example 10.0.0.0/8"
            ) from None
    return tuple(networks)


class PushOutcome(NamedTuple):
    """What became of a push."""

    kind: Literal["completed", "accepted", "failed", "released"]
    result: bytes = b""  #: JSON
    code: str = ""
    message: str = ""
    is_here: bool = True  #: False: the agent cannot take the next one either


class Completion(Struct):
    """The response of an agent that has completed a task."""

    result: msgspec.Raw | UnsetType = UNSET


_decode_completion = msgspec.json.Decoder(Completion).decode


class Endpoints:
    """The HTTP client of a push worker.

    Args:
        settings: timeouts, limits, and what is allowed.

    Raises:
        ConfigError: ``push_networks`` is invalid.
    """

    def __init__(self, settings: Settings) -> None:
        guard = AddressGuard(parse_networks(settings.push_networks)) if settings.gateway_security else None
        self._limit = settings.max_entry_bytes - ROOM_BYTES
        self._silence_s = silence_s = settings.push_timeout_s
        self._session = aiohttp.ClientSession(
            # An idle connection that the agent closes as the next task is sent would look like a failed attempt.
            connector=aiohttp.TCPConnector(
                limit=settings.push_connections,
                force_close=True,
                socket_factory=None if guard is None else guard.make_socket,
            ),
            timeout=aiohttp.ClientTimeout(
                total=max(TOTAL_S, silence_s), sock_connect=silence_s, sock_read=silence_s, ceil_threshold=60
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"coord/{__version__}", "Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def push(self, url: str, message: bytes, headers: Mapping[str, str]) -> PushOutcome:
        """Send a task to an agent; return what became of it.

        Args:
            url: of the endpoint.
            message: JSON.
            headers: besides the usual ones.
        """
        try:
            status, body = await self._post(url, message, headers)
        except aiohttp.ClientConnectorError as error:
            return _unreachable(str(error.os_error) or type(error.os_error).__name__)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError):
            return _unreachable("it is not a URL that begins with http:// or https://")
        except aiohttp.ConnectionTimeoutError:
            return _unreachable(f"no answer within {self._silence_s:g} s")
        except TimeoutError:
            return PushOutcome("failed", code="push_timed_out", message=f"no response within {self._silence_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return _failed(f"no response: {str(error) or type(error).__name__}")
        return self._outcome(status, body)

    async def deliver(self, url: str, message: bytes) -> bool:
        """Send a message to an agent; return True if it has accepted it."""
        try:
            status, _ = await self._post(url, message, {})
        except (aiohttp.ClientError, OSError, ValueError):
            return False
        return 200 <= status < 300

    async def is_up(self, url: str) -> bool:
        """Return True if an endpoint responds, whatever it responds."""
        try:
            async with self._session.head(url, allow_redirects=False):
                return True
        except (aiohttp.ClientError, OSError, ValueError):
            return False

    async def _post(self, url: str, message: bytes, headers: Mapping[str, str]) -> tuple[int, bytes | None]:
        """Return the status and the body of a response; None: the body is too large."""
        headers = {"Content-Type": "application/json", **headers}
        async with self._session.post(url, data=message, headers=headers, allow_redirects=False) as response:
            if response.status == 202 or not 200 <= response.status < 300:
                return response.status, b""
            chunks: list[bytes] = []
            size = 0
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > self._limit:
                    return response.status, None
                chunks.append(chunk)
            return response.status, b"".join(chunks)

    def _outcome(self, status: int, body: bytes | None) -> PushOutcome:
        if not 200 <= status < 300:
            return _refusal(status)
        if status == 202:
            return PushOutcome("accepted")
        if body is None:
            return _failed(f"its response is larger than {self._limit} bytes")
        try:
            body.decode()
            result = _decode_completion(body).result
            decode_json(body)  # the readers of the result have to be able to
        except BAD_JSON:
            return _failed(f"it responded with {status} and no JSON object")
        if isinstance(result, UnsetType):
            return _failed(f"it responded with {status} and no result; respond with 202 to report it later")
        return PushOutcome("completed", bytes(result))


def _refusal(status: int) -> PushOutcome:
    message = f"its endpoint responded with {status}"
    if status in NO_HANDLER:
        return PushOutcome("released", code="no_handler", message=message)
    if status in NO_ROOM:
        return PushOutcome("released", code="no_slot", message=message, is_here=False)
    return _failed(f"{message}, and redirects are not followed" if status < 400 else message)


def _failed(message: str) -> PushOutcome:
    return PushOutcome("failed", code="push_failed", message=message)


def _unreachable(reason: str) -> PushOutcome:
    return PushOutcome(
        "released", code="unreachable", message=f"no connection to its endpoint: {reason}", is_here=False
    )
