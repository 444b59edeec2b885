"""The endpoints of agents: which addresses a push worker may connect to, and what each response means."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from coord.config import Settings
from coord.errors import ConfigError
from workers.endpoints import AddressGuard, AddressRefused, Endpoints, parse_networks

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "224.0.0.1",
    "0.0.0.0", "255.255.255.255", "::1", "::",  # noqa: S104 -- what is refused
    "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::1",
    "fec0::1", "64:ff9b:1::7f00:1", "::ffff:0:10.0.0.1", "::10.0.0.1", "168.63.129.16",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    """Private, loopback, link-local, of a metadata service, for many, or one of these in IPv6 form."""
    with pytest.raises(AddressRefused, match="COORD_PUSH_NETWORKS"):
        AddressGuard().check(address)
    found = (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
    with pytest.raises(AddressRefused):
        AddressGuard().make_socket(found)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not(address: str) -> None:
    """Also in IPv6 form."""
    AddressGuard().check(address)


def test_a_network_is_allowed_by_its_setting() -> None:
    """Only that one; also for its addresses in IPv6 form."""
    guard = AddressGuard(parse_networks("10.0.0.0/8, fd00::/8"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        guard.check(address)
    with pytest.raises(AddressRefused):
        guard.check("192.168.1.1")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "office", "10.0.0.0/40"])
def test_what_is_no_network_is_named(text: str) -> None:
    """With the setting and an example."""
    with pytest.raises(ConfigError, match=r"COORD_PUSH_NETWORKS=.*10\.0\.0\.0/8"):
        parse_networks(f"127.0.0.0/8,{text}")
    assert parse_networks(None) == parse_networks(" , ") == ()


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (200, b'{"result": {"n": 1}}', "completed", ""),
        (201, b'{"status": "success", "result": null}', "completed", ""),
        (202, b"", "accepted", ""),
        (200, b'{"status": "success"}', "failed", "push_failed"),
        (200, b"", "failed", "push_failed"),
        (200, b'{"result": "\xff"}', "failed", "push_failed"),
        (200, b"[" * 100_000, "failed", "push_failed"),
        (200, None, "failed", "push_failed"),
        (204, b"", "failed", "push_failed"),
        (302, b"", "failed", "push_failed"),
        (400, b"", "failed", "push_failed"),
        (404, b"", "released", "no_handler"),
        (429, b"", "released", "no_slot"),
        (500, b"", "failed", "push_failed"),
        (503, b"", "released", "no_slot"),
    ],
)
async def test_what_a_response_means(status: int, body: bytes | None, kind: str, code: str) -> None:
    """Each has its outcome, and a sentence that names the status."""
    endpoints: Any = Endpoints(Settings())
    outcome = endpoints._outcome(status, body)
    await endpoints.close()
    assert (outcome.kind, outcome.code) == (kind, code)
    assert bool(outcome.message) == bool(code)


@pytest.mark.parametrize("url", ["ftp://localhost/x", "localhost:8001/x", "http://", "", "http://[::1/x"])
async def test_what_is_no_url_releases_the_task(url: str) -> None:
    """It is no failure of the task, and the error does not show the URL, which may have a password."""
    endpoints = Endpoints(Settings())
    outcome = await endpoints.push(url, b"{}", {})
    await endpoints.close()
    assert (outcome.kind, outcome.code, outcome.is_here) == ("released", "unreachable", False)
    assert "http://" in outcome.message
