"""What browsers and proxies need: origins that may call, headers of every response, the address of the caller."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from coord.config import Settings
from coord.errors import ConfigError

Headers = list[tuple[bytes, bytes]]

#: Headers of every response that is no page.
PLAIN: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
#: Headers of a page: it may load the gateway's own files and call the gateway, and nothing else.
PAGE: Headers = [
    *PLAIN[:2],
    (
        b"content-security-policy",
        (
            b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
            b"connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
            b"frame-ancestors 'none'"
        ),
    ),
    (b"x-frame-options", b"DENY"),
]
#: Sent over https only.
HSTS = (b"strict-transport-security", b"max-age=31536000")
#: What a page of an allowed origin may send, and read of a response.
ALLOWED_HEADERS = (
    "Authorization, Content-Type, X-API-Key, X-Agent-Token, Idempotency-Key, Prefer, Last-Event-ID, traceparent"
)
EXPOSED_HEADERS = "Location, Retry-After"
#: Seconds for which a browser may remember what it may send.
PREFLIGHT_S = 600


class Web:
    """The rules for browsers and proxies.

    Args:
        settings: origins and proxies.

    Raises:
        ConfigError: an origin or a proxy does not fit; names it.
    """

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(_origin(one) for one in _listed(settings.gateway_cors_origins))
        self._proxies = tuple(_network(one) for one in _listed(settings.gateway_trusted_proxies))
        self._checks_names = not settings.gateway_security

    def is_open_to(self, origin: str) -> bool:
        """Return True if web pages of another origin may call."""
        return origin in self._origins

    def is_known_name(self, host: str) -> bool:
        """Return True if a Host header cannot be the name of an attacker that leads here (DNS rebinding).

        With security on it does not matter: no browser adds a credential by itself.
        """
        return not self._checks_names or is_local_name(host)

    def address_of(self, remote: str, forwarded_for: str | None) -> str:
        """Return the address of a caller.

        Args:
            remote: the address that is connected.
            forwarded_for: the header X-Forwarded-For; read if a trusted proxy is connected.
        """
        if forwarded_for is None or not self.is_proxy(remote):
            return remote
        for hop in reversed(forwarded_for.split(",")):
            address = hop.strip()
            if not _is_address(address):
                return remote
            if not self.is_proxy(address):
                return address
        return remote

    def is_proxy(self, address: str) -> bool:
        """Return True if an address is that of a trusted proxy."""
        return bool(self._proxies) and _is_in(address, self._proxies)

    def is_https(self, scheme: str, remote: str, forwarded_proto: str | None) -> bool:
        """Return True if the caller uses TLS, also up to a trusted proxy."""
        return scheme in {"https", "wss"} or (forwarded_proto == "https" and self.is_proxy(remote))

    def cors_headers(self, origin: str) -> Headers:
        """Return the headers of a response to a page of an allowed origin."""
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", EXPOSED_HEADERS.encode()),
            (b"vary", b"Origin"),
        ]

    def preflight_headers(self, methods: Iterable[str]) -> dict[str, str]:
        """Return the headers with which a browser learns what a page of an allowed origin may send."""
        return {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_S),
        }


@lru_cache(maxsize=256)
def is_local_name(host: str) -> bool:
    """Return True if a Host header is an address or ``localhost``, so no foreign DNS can have led the browser here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name in {"", "localhost"} or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


@lru_cache(maxsize=1_024)
def _is_in(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None) or found
    return any(mapped in network for network in networks)


def _listed(text: str | None) -> list[str]:
    return [one.strip() for one in (text or "").split(",") if one.strip()]


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}".lower():
        raise ConfigError(
            f"COORD_GATEWAY_CORS_ORIGINS: {text[:100]!r} is not an origin; expected for example https://ops.example.org"
        )
    return text


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"COORD_GATEWAY_TRUSTED_PROXIES: {text[:100]!r} is not an address; expected for example 10.0.0.0/8"
        ) from None
