"""JSON Web Tokens: which the gateway accepts, and the ones that it issues at a login.

HS256 has a secret, RS256 an RSA key, each from a setting. A token is verified with the key of the algorithm that it
names, never with another one; any other algorithm, ``none`` too, is refused.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from msgspec import Struct

from coord.config import Settings, expand_home
from coord.errors import ConfigError, IdInvalid
from coord.gateway.errors import RequestError
from coord.models.api_keys import CallerRole
from coord.models.ids import check_id

#: Characters of a secret, at least (RFC 7518: as many bytes as the hash has).
MIN_SECRET = 32
#: Bits of an RSA key, at least.
MIN_BITS = 2_048
#: Longest token that is looked at.
MAX_LENGTH = 4_096
#: Seconds by which the clocks of two machines may differ.
LEEWAY_S = 5
#: Claim ``use`` of a token that only gets new tokens.
REFRESH = "refresh"


class Claims(Struct, frozen=True):
    """What a valid token says."""

    subject: str
    role: CallerRole
    agent_id: str | None
    key_id: str | None  #: the API key that it was issued for; it is valid only as long as that key
    token_id: str
    expires_at: int  #: ms since 1970


class Issued(Struct, frozen=True):
    """A new token."""

    token: str
    expires_at: int  #: ms since 1970


class Jwts:
    """Issues and verifies tokens.

    Args:
        settings: the keys, issuer, audience, and how long tokens are valid.

    Raises:
        ConfigError: a key does not fit; names the setting and never shows the key.
    """

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.gateway_jwt_issuer
        self._audience = settings.gateway_jwt_audience
        self._ttl_s = settings.gateway_jwt_ttl_s
        self._refresh_ttl_s = settings.gateway_refresh_ttl_s
        self._verifies: dict[str, str | RSAPublicKey] = {}  # algorithm -> its key
        self._signs: tuple[str, str | RSAPrivateKey] | None = None
        if settings.gateway_jwt_key:
            private, public = _rsa_key(settings.gateway_jwt_key)
            self._verifies["RS256"] = public
            self._signs = None if private is None else ("RS256", private)
        if secret := settings.gateway_jwt_secret:
            if len(secret) < MIN_SECRET:
                raise ConfigError(
                    f"COORD_GATEWAY_JWT_SECRET: expected {MIN_SECRET} characters or more, got {len(secret)}; "
                    "`openssl rand -hex 32` makes one"
                )
            self._verifies["HS256"] = secret
            self._signs = self._signs or ("HS256", secret)

    def issue(self, claims: Claims, *, is_refresh: bool = False) -> Issued:
        """Return a new token with the subject, role, agent and API key of ``claims``; it ends with them at the latest.

        Raises:
            RequestError: no key is set that could sign it.
        """
        if self._signs is None:
            raise RequestError(
                "jwt_not_configured", "this gateway issues no JWTs: set COORD_GATEWAY_JWT_SECRET, or use the API key"
            )
        algorithm, key = self._signs
        now = int(time.time())
        ends = now + int(self._refresh_ttl_s if is_refresh else self._ttl_s)
        ends = min(ends, claims.expires_at // 1000) if claims.expires_at else ends
        payload: dict[str, Any] = {
            "sub": claims.subject,
            "role": claims.role.value,
            "iat": now,
            "exp": ends,
            "jti": secrets.token_hex(16),
        }
        optional = {
            "agent_id": claims.agent_id,
            "key": claims.key_id,
            "iss": self._issuer,
            "aud": self._audience,
            "use": REFRESH if is_refresh else None,
        }
        payload |= {name: value for name, value in optional.items() if value}
        return Issued(jwt.encode(payload, key, algorithm=algorithm), ends * 1000)

    def verify(self, token: str, *, is_refresh: bool = False) -> Claims:
        """Return the claims of a token.

        Args:
            token: as it was sent.
            is_refresh: True if it must be a refresh token; otherwise it must not be one.

        Raises:
            RequestError: it is not valid, or not any more. The message does not show the token.
        """
        try:
            algorithm = jwt.get_unverified_header(token).get("alg") if len(token) <= MAX_LENGTH else None
            key = self._verifies.get(algorithm) if isinstance(algorithm, str) else None
            if key is None or algorithm is None:
                raise _invalid("its algorithm is not accepted")
            payload = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub", "role"], "verify_aud": self._audience is not None},
            )
            if (payload.get("use") == REFRESH) != is_refresh:
                raise _invalid("it is a refresh token" if not is_refresh else "it is no refresh token")
            return _claims(payload)
        except jwt.ExpiredSignatureError:
            raise _invalid("it has expired") from None
        except jwt.ImmatureSignatureError:
            raise _invalid("it is not valid yet") from None
        except jwt.MissingRequiredClaimError as error:
            raise _invalid(f"it has no claim {error.claim}") from None
        except (jwt.PyJWTError, IdInvalid, ValueError, TypeError, RecursionError):
            raise _invalid("its signature or a claim is not valid") from None


def _claims(payload: dict[str, Any]) -> Claims:
    role, agent_id, key_id = payload["role"], payload.get("agent_id"), payload.get("key")
    if role not in set(CallerRole):
        raise _invalid("its role is not one of " + ", ".join(CallerRole))
    if (role == CallerRole.AGENT) != (agent_id is not None):
        raise _invalid("the claim agent_id is needed with the role agent, and with no other")
    return Claims(
        str(payload["sub"])[:128],
        CallerRole(role),
        None if agent_id is None else check_id(agent_id, "agent_id"),
        None if key_id is None else str(key_id),
        str(payload.get("jti", "")),
        int(payload["exp"]) * 1000,
    )


def _invalid(why: str) -> RequestError:
    return RequestError("credential_invalid", f"the JWT is refused: {why}")


def _rsa_key(text: str) -> tuple[RSAPrivateKey | None, RSAPublicKey]:
    """Return the private key, if it is one, and the public key."""
    name = "COORD_GATEWAY_JWT_KEY"
    pem = text.replace("\\n", "\n").encode()
    if b"-----BEGIN" not in pem:
        path: Path = expand_home(text, name)
        try:
            pem = path.read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not a path"
            raise ConfigError(f"{name}: {why}; expected an RSA key as PEM, or the path of its file") from None
    private: RSAPrivateKey | None = None
    try:
        if b"PRIVATE KEY" in pem:
            found: Any = load_pem_private_key(pem, password=None)
            private, public = found, found.public_key()
        else:
            public = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{name}: expected an RSA key as PEM without a password") from None
    if not isinstance(public, RSAPublicKey) or public.key_size < MIN_BITS:
        raise ConfigError(f"{name}: expected an RSA key of {MIN_BITS} bits or more")
    return private, public
