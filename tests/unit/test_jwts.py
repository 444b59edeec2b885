"""JSON Web Tokens: which ones are accepted, and which are refused."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from coord.config import Settings
from coord.errors import ConfigError
from coord.gateway.errors import RequestError
from coord.gateway.jwts import Claims, Jwts
from coord.models.api_keys import CallerRole

SECRET = "s3cret-" * 6
CLIENT = Claims("ann", CallerRole.CLIENT, None, "0123456789ab", "", 0)


def _pem(key: rsa.RSAPrivateKey) -> tuple[str, str]:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


PRIVATE, PUBLIC = _pem(rsa.generate_private_key(65_537, 2_048))
OTHER_PRIVATE, _ = _pem(rsa.generate_private_key(65_537, 2_048))


def payload(**changed: Any) -> dict[str, Any]:
    """Claims that are accepted, but for the changes; None removes one."""
    found: dict[str, Any] = {"sub": "ann", "role": "client", "exp": int(time.time()) + 60} | changed
    return {name: value for name, value in found.items() if value is not None}


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token with any header."""
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    "settings",
    [Settings(gateway_jwt_secret=SECRET), Settings(gateway_jwt_key=PRIVATE)],
    ids=["HS256", "RS256"],
)
def test_an_issued_token_is_accepted(settings: Settings) -> None:
    """With whom it is for; a refresh token is for nothing else than to refresh, and the other way round."""
    jwts = Jwts(settings)
    issued = jwts.issue(CLIENT)
    found = jwts.verify(issued.token)
    assert (found.subject, found.role, found.key_id, found.agent_id) == ("ann", CallerRole.CLIENT, "0123456789ab", None)
    assert found.expires_at == issued.expires_at
    refresh = jwts.issue(CLIENT, is_refresh=True)
    assert jwts.verify(refresh.token, is_refresh=True).token_id
    assert refresh.expires_at > issued.expires_at
    with pytest.raises(RequestError, match="it is a refresh token"):
        jwts.verify(refresh.token)
    with pytest.raises(RequestError, match="no refresh token"):
        jwts.verify(issued.token, is_refresh=True)


def test_a_token_ends_with_its_key() -> None:
    """A key that expires sooner than a login would."""
    jwts = Jwts(Settings(gateway_jwt_secret=SECRET))
    soon = int(time.time() + 30) * 1000
    issued = jwts.issue(Claims("ann", CallerRole.CLIENT, None, "0123456789ab", "", soon), is_refresh=True)
    assert issued.expires_at == soon


BOTH = Settings(
    gateway_jwt_secret=SECRET, gateway_jwt_key=PUBLIC, gateway_jwt_issuer="ops", gateway_jwt_audience="cell"
)
GOOD = {"iss": "ops", "aud": "cell"}
REFUSED: dict[str, str] = {
    "none": unsigned({"alg": "none"}, payload(**GOOD)),
    "None": unsigned({"alg": "None"}, payload(**GOOD), b"x"),
    "no algorithm": unsigned({"typ": "JWT"}, payload(**GOOD)),
    "the algorithm is no text": unsigned({"alg": ["HS256"]}, payload(**GOOD)),
    "another secret": jwt.encode(payload(**GOOD), "another" * 8, algorithm="HS256"),
    "another RSA key": jwt.encode(payload(**GOOD), OTHER_PRIVATE, algorithm="RS256"),
    "HS256 with the public RSA key": "",  # made below
    "PS256": jwt.encode(payload(**GOOD), PRIVATE, algorithm="PS256"),
    "expired": jwt.encode(payload(**GOOD, exp=int(time.time()) - 60), SECRET, algorithm="HS256"),
    "not yet valid": jwt.encode(payload(**GOOD, nbf=int(time.time()) + 60), SECRET, algorithm="HS256"),
    "issued in the future": jwt.encode(payload(**GOOD, iat=int(time.time()) + 60), SECRET, algorithm="HS256"),
    "no end": jwt.encode(payload(**GOOD, exp=None), SECRET, algorithm="HS256"),
    "no subject": jwt.encode(payload(**GOOD, sub=None), SECRET, algorithm="HS256"),
    "no role": jwt.encode(payload(**GOOD, role=None), SECRET, algorithm="HS256"),
    "an unknown role": jwt.encode(payload(**GOOD, role="root"), SECRET, algorithm="HS256"),
    "a role that is a list": jwt.encode(payload(**GOOD, role=["admin"]), SECRET, algorithm="HS256"),
    "an agent without an id": jwt.encode(payload(**GOOD, role="agent"), SECRET, algorithm="HS256"),
    "an agent with a wrong id": jwt.encode(payload(**GOOD, role="agent", agent_id="a b"), SECRET, algorithm="HS256"),
    "an id without the role": jwt.encode(payload(**GOOD, agent_id="a1"), SECRET, algorithm="HS256"),
    "another issuer": jwt.encode(payload(iss="x", aud="cell"), SECRET, algorithm="HS256"),
    "no issuer": jwt.encode(payload(aud="cell"), SECRET, algorithm="HS256"),
    "another audience": jwt.encode(payload(iss="ops", aud="x"), SECRET, algorithm="HS256"),
    "no audience": jwt.encode(payload(iss="ops"), SECRET, algorithm="HS256"),
    "too long": jwt.encode(payload(**GOOD, x="x" * 4_096), SECRET, algorithm="HS256"),
    "no JWT": "eyJ.x.y",
    "empty": "",
}


def _forged() -> str:
    """The public key, which everyone knows, used as the secret; made by hand, since no library does it."""
    import hashlib
    import hmac

    body = unsigned({"alg": "HS256"}, payload(**GOOD)).rpartition(".")[0]
    signature = hmac.new(PUBLIC.encode(), body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


REFUSED["HS256 with the public RSA key"] = _forged()


@pytest.mark.guarantee("http-roles")
@pytest.mark.parametrize("name", REFUSED)
def test_a_token_is_refused(name: str) -> None:
    """Whatever is wrong with it; the message shows no part of it."""
    with pytest.raises(RequestError) as caught:
        Jwts(BOTH).verify(REFUSED[name])
    assert caught.value.name == "credential_invalid"
    if REFUSED[name]:
        assert REFUSED[name].split(".")[-1] not in str(caught.value) or not REFUSED[name].split(".")[-1]


def test_the_same_tokens_are_accepted_where_nothing_is_wrong() -> None:
    """So that those above are refused for their own reason; an agent's token says which."""
    jwts = Jwts(BOTH)
    for key, algorithm in ((SECRET, "HS256"), (PRIVATE, "RS256")):
        assert jwts.verify(jwt.encode(payload(**GOOD), key, algorithm=algorithm)).role is CallerRole.CLIENT
    agent = jwt.encode(payload(**GOOD, role="agent", agent_id="a1"), SECRET, algorithm="HS256")
    assert jwts.verify(agent).agent_id == "a1"


def test_the_public_key_alone_is_refused_where_it_is_the_only_key() -> None:
    """HS256 has no key then; and nothing is issued."""
    jwts = Jwts(Settings(gateway_jwt_key=PUBLIC))
    with pytest.raises(RequestError, match="algorithm"):
        jwts.verify(_forged())
    with pytest.raises(RequestError) as caught:
        jwts.issue(CLIENT)
    assert caught.value.name == "jwt_not_configured"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"gateway_jwt_secret": "short-and-secret"},
            "COORD_GATEWAY_JWT_SECRET: expected 32 characters or more, got 16",
        ),
        ({"gateway_jwt_key": "/nowhere/jwt.pem"}, "COORD_GATEWAY_JWT_KEY: No such file"),
        ({"gateway_jwt_key": "-----BEGIN PUBLIC KEY-----\nc2VjcmV0\n-----END PUBLIC KEY-----"}, "expected an RSA key"),
        (
            {"gateway_jwt_key": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"},
            "expected an RSA key",
        ),
        ({"gateway_jwt_key": _pem(rsa.generate_private_key(65_537, 1_024))[1]}, "2048 bits"),  # noqa: S505 (it is)
    ],
)
def test_a_key_that_does_not_fit_is_refused_at_the_start(changed: dict[str, Any], message: str) -> None:
    """The message names the setting and shows no part of the key."""
    with pytest.raises(ConfigError, match=message) as caught:
        Jwts(Settings(**changed))
    assert "secret" not in str(caught.value).replace("SECRET", "")
    assert "c2VjcmV0" not in str(caught.value)


def test_a_key_may_be_in_a_file_or_on_one_line(tmp_path: Path) -> None:
    """As a container's environment holds it."""
    file = tmp_path / "jwt.pem"
    file.write_text(PRIVATE)
    token = Jwts(Settings(gateway_jwt_key=str(file))).issue(CLIENT).token
    assert Jwts(Settings(gateway_jwt_key=PUBLIC.replace("\n", "\\n"))).verify(token).subject == "ann"
