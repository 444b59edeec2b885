"""The error tree: code, HTTP status and exit code of every class, and the drawing in its docstring."""

from __future__ import annotations

import re

import pytest

from coord import errors
from coord.cli.exit_codes import ExitCode
from coord.errors import BY_CODE, CoordError, from_code
from coord.gateway.errors import HTTP_ONLY, status_of

GROUPS = {
    "Invalid", "Forbidden", "NotFound", "Conflict", "Unavailable", "Timeout", "TaskEnded", "RequestEnded",
    "Undelivered",
}  # fmt: skip

#: class -> group, code, HTTP status, exit code. All of them are public.
EXPECTED = {
    "ConfigError": ("Invalid", "config_invalid", 503, 2),
    "FactInvalid": ("Invalid", "fact_invalid", 422, 2),
    "PayloadInvalid": ("FactInvalid", "payload_invalid", 422, 2),
    "FactTooLarge": ("Invalid", "fact_too_large", 413, 2),
    "IdInvalid": ("Invalid", "id_invalid", 422, 2),
    "CursorInvalid": ("Invalid", "cursor_invalid", 422, 2),
    "QueryInvalid": ("Invalid", "query_invalid", 422, 2),
    "EntryBuried": ("Invalid", "entry_buried", 422, 2),
    "TokenMissing": ("Forbidden", "token_missing", 401, 2),
    "TokenInvalid": ("Forbidden", "token_invalid", 403, 2),
    "TaskNotFound": ("NotFound", "task_not_found", 404, 1),
    "AgentNotFound": ("NotFound", "agent_not_found", 404, 1),
    "AgentLeft": ("AgentNotFound", "agent_left", 404, 1),
    "UnknownAgent": ("NotFound", "unknown_agent", 404, 2),
    "AgentNotEnrolled": ("NotFound", "agent_not_enrolled", 404, 1),
    "ApiKeyNotFound": ("NotFound", "api_key_not_found", 404, 1),
    "MessageNotFound": ("NotFound", "message_not_found", 404, 1),
    "EntryNotFound": ("NotFound", "entry_not_found", 404, 1),
    "IdConflict": ("Conflict", "id_conflict", 409, 1),
    "TaskAlreadyFinished": ("Conflict", "task_finished", 409, 1),
    "TaskNotDead": ("Conflict", "task_not_dead", 409, 1),
    "MessageNotDead": ("Conflict", "message_not_dead", 409, 1),
    "EntryTruncated": ("Conflict", "entry_truncated", 422, 1),
    "AgentSuperseded": ("Conflict", "superseded", 409, 2),
    "StaleLease": ("Conflict", "stale_lease", 409, 1),
    "AgentIsEnrolled": ("Conflict", "agent_enrolled", 409, 1),
    "ApiKeysFull": ("Conflict", "api_keys_full", 409, 1),
    "LinkNotRequested": ("Conflict", "link_not_requested", 409, 1),
    "LinkDeclined": ("Conflict", "link_declined", 409, 1),
    "LinksFull": ("Conflict", "links_full", 409, 1),
    "HierarchyCycle": ("Conflict", "hierarchy_cycle", 409, 1),
    "AgentNotDraining": ("Conflict", "agent_not_draining", 409, 1),
    "DataFolderInUse": ("Conflict", "data_folder_in_use", 422, 2),
    "ServerUnavailable": ("Unavailable", "server_unavailable", 503, 2),
    "ServerFull": ("Unavailable", "server_full", 503, 2),
    "ServerUnfit": ("Unavailable", "server_unfit", 503, 2),
    "TaskRefused": ("Unavailable", "backlog_full", 503, 1),
    "ResultTimeout": ("Timeout", "result_timeout", 504, 3),
    "RequestTimedOut": ("Timeout", "request_timed_out", 504, 1),
    "TaskFailed": ("TaskEnded", "task_failed", 422, 1),
    "TaskCancelled": ("TaskEnded", "task_cancelled", 422, 1),
    "TaskExpired": ("TaskEnded", "task_expired", 422, 1),
    "ResultInvalid": ("TaskEnded", "result_invalid", 422, 1),
    "ResultDropped": ("TaskEnded", "result_dropped", 422, 1),
    "MessageUndeliverable": ("Undelivered", "message_undeliverable", 422, 1),
    "MessageExpired": ("Undelivered", "message_expired", 422, 1),
    "HopLimitReached": ("Undelivered", "hop_limit_reached", 422, 1),
    "ConversationFull": ("Undelivered", "conversation_full", 422, 1),
    "RequestFailed": ("RequestEnded", "request_failed", 422, 1),
    "NotLinked": ("Undelivered", "not_linked", 422, 1),
    "NotInHierarchy": ("Undelivered", "not_in_hierarchy", 422, 1),
    "NoSubordinates": ("Undelivered", "no_subordinates", 422, 1),
}


def test_every_class_is_listed_here() -> None:
    """A new class needs a row, and a row needs a class."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes == {"CoordError", *GROUPS, *EXPECTED}
    assert {cls.__name__ for cls in BY_CODE.values()} == {"CoordError", *EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_class_has_its_group_code_status_and_exit_code(name: str) -> None:
    """They are public, so they stay."""
    cls = getattr(errors, name)
    assert (cls.__bases__[0].__name__, cls.code, cls.http_status, cls.exit_code) == EXPECTED[name]
    assert status_of(cls.code) == cls.http_status
    assert type(from_code(cls.code, "why")) is cls
    ExitCode(cls.exit_code)


def test_an_unknown_code_is_a_plain_error() -> None:
    """A newer worker may send a code that this client does not know."""
    error = from_code("of_the_future", "")
    assert type(error) is CoordError
    assert (str(error), error.http_status, error.exit_code) == ("of_the_future", 422, 2)
    assert status_of("of_the_future") == 422


def test_a_timeout_is_a_builtin_timeout() -> None:
    """So that ``except TimeoutError`` catches it."""
    assert issubclass(errors.ResultTimeout, TimeoutError)


def test_a_code_has_one_status() -> None:
    """What only HTTP has is no code of a class."""
    assert not set(HTTP_ONLY) & set(BY_CODE)


def test_the_docstring_draws_the_tree() -> None:
    """Each class below its group, or below the last class of the line above."""
    drawn: dict[str, str] = {}
    group = above = ""
    for line in (errors.__doc__ or "").splitlines():
        names = re.findall(r"\b[A-Z][A-Za-z]+\b", line)
        if line.startswith(("    ├── ", "    └── ")):
            group = names[0]
        elif "─ " in line:
            drawn.update(dict.fromkeys(names, above if line.startswith("    │       ") else group))
            above = names[-1]
    assert drawn == {name: row[0] for name, row in EXPECTED.items()}
