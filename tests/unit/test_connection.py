"""Connections without a server: URLs, and where Redis is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from coord.config import Settings
from coord.connection import DEFAULT_URL, connect, locate, safe_url
from coord.endpoint import write_endpoint
from coord.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "expected redis://"),
        ("localhost:6379", "localhost"),
        ("http://h:1", "http://h:1"),
        ("redis://", "redis://"),
        ("unix://", "unix://"),
        ("redis://h:port", "redis://h:port"),
        ("redis://h:99999", "99999"),
        ("redis://h/zero", "redis://h/zero"),
        ("redis://h?retry_on_timeout=1", "retry_on_timeout"),
        ("redis://h?protocol=2", "protocol"),
        ("redis://h?db=x", "db"),
        ("redis://u:hidden@h/zero", "redis://u:***@h/zero"),
    ],
)
def test_a_bad_url_is_named(url: str, message: str) -> None:
    """ConfigError names the URL, never its password; options that would undo this module are refused."""
    with pytest.raises(ConfigError) as caught:
        connect(url, Settings())
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_bad_url_of_the_environment_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one may have forgotten that it is set; a URL that came another way has no variable."""
    monkeypatch.setenv("COORD_REDIS_URL", "http://u:hidden@h:1")
    with pytest.raises(ConfigError, match=r"^COORD_REDIS_URL='http://u:\*\*\*@h:1' is not a Redis URL"):
        connect("http://u:hidden@h:1", Settings())
    with pytest.raises(ConfigError, match=r"^'http://h:1' is not a Redis URL"):
        connect("http://h:1", Settings())


def test_a_password_is_never_shown() -> None:
    """safe_url is what messages and logs carry."""
    assert safe_url("rediss://ann:p%40ss@h:1/2?ssl_password=x") == "rediss://ann:***@h:1/2?***"
    assert safe_url("redis://:secret@h") == "redis://:***@h"
    assert safe_url("unix:///run/r.sock") == "unix:///run/r.sock"


def test_redis_is_found_by_setting_then_endpoint_then_default(tmp_path: Path) -> None:
    """What is named; else COORD_REDIS_URL; else a live `coord up`; else this machine."""
    path = tmp_path / "e.json"
    here = Settings(endpoint_file=str(path))
    assert locate(here) == (DEFAULT_URL, here)
    write_endpoint(path, "redis://127.0.0.1:7001/0", None, "coord")
    assert locate(here) == ("redis://127.0.0.1:7001/0", here)
    explicit = Settings(endpoint_file=str(path), redis_url="redis://r:1")
    assert locate(explicit) == ("redis://r:1", explicit)
    assert locate(explicit, "redis://named:1") == ("redis://named:1", explicit)


def test_the_namespace_of_a_coord_up_is_followed_with_its_server(tmp_path: Path) -> None:
    """Whoever finds a `coord up` is in its cell; one's own namespace, or one's own server, stands over that."""
    path = tmp_path / "e.json"
    write_endpoint(path, "redis://127.0.0.1:7001/0", None, "theirs")
    here = Settings(endpoint_file=str(path))
    assert locate(here)[1].namespace == "theirs"
    assert locate(Settings(endpoint_file=str(path), namespace="mine"))[1].namespace == "mine"
    assert locate(here, "redis://named:1")[1].namespace == "coord"
