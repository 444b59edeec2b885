"""Where the gateway listens, and where it will not."""

from __future__ import annotations

import msgspec
import pytest

from coord.config import Settings
from coord.errors import ConfigError
from coord.gateway.server import bind

EVERYWHERE = "0.0.0.0"  # noqa: S104 -- what is refused


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "192.0.2.1"])
def test_an_open_address_is_refused(settings: Settings, host: str) -> None:
    """The message names the setting, and the command for the first key."""
    with pytest.raises(ConfigError, match=r"COORD_GATEWAY_SECURITY=on.*coord keys create --role admin"):
        bind(msgspec.structs.replace(settings, gateway_host=host))


def test_an_open_address_is_bound_with_security(settings: Settings) -> None:
    """As a container needs it."""
    with bind(msgspec.structs.replace(settings, gateway_host=EVERYWHERE, gateway_port=0, gateway_security=True)) as one:
        assert one.getsockname()[0] == EVERYWHERE


def test_an_address_that_cannot_be_bound_is_named(settings: Settings) -> None:
    """A taken port, a name that leads nowhere."""
    with bind(msgspec.structs.replace(settings, gateway_host="localhost", gateway_port=0)) as taken:
        host, port = taken.getsockname()[:2]
        with pytest.raises(ConfigError, match=f"port {port}.*--port"):
            bind(msgspec.structs.replace(settings, gateway_host=host, gateway_port=port))
    for host in ("no such host", "x" * 300):
        with pytest.raises(ConfigError, match="COORD_GATEWAY_HOST"):
            bind(msgspec.structs.replace(settings, gateway_host=host))
