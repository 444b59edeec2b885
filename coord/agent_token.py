"""The token of an agent: how one is made, and where a process takes its own from.

A token is a random text that an operator makes with ``coord agents enrol``. The agent sends it beside each of its
facts; the cell stores only its SHA-256.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

from coord.config import Settings, expand_home
from coord.errors import ConfigError
from coord.logs import get_logger

log = get_logger()

#: Begins every token that coord makes, so that tools which look for secrets find it.
PREFIX = "coord_"
#: 32 random bytes: nobody can guess the token behind a digest, so the digest needs no salt.
RANDOM_BYTES = 32
#: Of a token that was made in another way.
MIN_LENGTH, MAX_LENGTH = 16, 512

_TOKEN = re.compile(r"[!-~]+")


def new_token() -> str:
    """Return a new token."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def digest_of_token(token: str) -> str:
    """Return what the cell stores of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def check_token(token: object, source: str) -> str:
    """Return a token, if it can be one. The error never shows it.

    Args:
        token: the value.
        source: where it comes from, for the message.

    Raises:
        ConfigError: it is not 16 to 512 visible ASCII characters.
    """
    if not isinstance(token, str):
        raise ConfigError(f"{source}: expected the text of a token, not {type(token).__name__}")
    if not MIN_LENGTH <= len(token) <= MAX_LENGTH or not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"{source}: expected a token of {MIN_LENGTH} to {MAX_LENGTH} visible ASCII characters, "
            "as `coord agents enrol` prints it"
        )
    return token


class AgentToken:
    """The token that a process sends; it may be read from any thread.

    Args:
        text: the token; empty: none.
        path: the file that has it instead. It is read again when it changes.

    Raises:
        ConfigError: there is no such file, or it has no token.
    """

    def __init__(self, text: str = "", path: Path | None = None) -> None:
        self._text = text
        self._path = path
        self._version: tuple[int, int, int] | None = None
        if path is not None:
            self._text, self._version = _read(path)

    @classmethod
    def of(cls, settings: Settings, token: str | None = None) -> AgentToken:
        """Return the token of a process.

        Args:
            settings: name a token or a file.
            token: takes precedence over the settings.

        Raises:
            ConfigError: a token does not fit, or its file cannot be read.
        """
        if token is not None:
            return cls(check_token(token, "token"))
        if settings.agent_token:
            return cls(check_token(settings.agent_token, "COORD_AGENT_TOKEN"))
        if settings.agent_token_file:
            return cls(path=expand_home(settings.agent_token_file, f"token file {settings.agent_token_file}"))
        return cls()

    def current(self) -> str:
        """Return the token; empty if there is none. A file that cannot be read any more leaves the last one."""
        if self._path is None:
            return self._text
        try:
            if _version_of(self._path) != self._version:
                self._text, self._version = _read(self._path)
                log.info("agent.token_read", file=str(self._path))
        except (OSError, ConfigError) as error:
            if self._version is not None:
                self._version = None
                log.warning("agent.token_unreadable", file=str(self._path), error=str(error))
        return self._text


def _read(path: Path) -> tuple[str, tuple[int, int, int]]:
    try:
        version = _version_of(path)
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise ConfigError(f"token file {path}: {error.strerror or error}; `coord agents enrol` makes a token") from None
    return check_token(text, f"token file {path}"), version


def _version_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size
