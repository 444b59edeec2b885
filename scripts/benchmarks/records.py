"""Times of a run from the records of its tasks, on the server's clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import redis

from coord import codec
from coord.keys import Keys

#: Records read in one round trip.
CHUNK = 2_000


#: The readers of packed fields; a commit that is compared with may have their earlier names.
_parse_submission: Any = getattr(codec, "parse_submission", None) or getattr(codec, "submission_of")  # noqa: B009
_parse_assignment: Any = getattr(codec, "parse_assignment", None) or getattr(codec, "assignment_of")  # noqa: B009


def ended(server: redis.Redis, keys: Keys) -> list[bytes]:
    """Return the ids of all completed tasks."""
    found: list[bytes] = server.execute_command("ZRANGE", keys.of("tasks:terminal"), 0, -1)
    return found


def times(server: redis.Redis, keys: Keys, task_ids: Sequence[bytes], field: str) -> list[int]:
    """Return one field of each record that has it, in milliseconds since 1970."""
    return [value for chunk in _chunks(task_ids) for value in _read(server, keys, chunk, field)]


def span_s(server: redis.Redis, keys: Keys, begin: str) -> float:
    """Return the seconds from the first ``begin`` (a field of the records) to the last end of a task."""
    task_ids = ended(server, keys)
    first = min(times(server, keys, task_ids, begin))
    last = server.execute_command("ZRANGE", keys.of("tasks:terminal"), -1, -1, "WITHSCORES")[0][1]
    return max(1.0, float(last) - first) / 1000


def _chunks(task_ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for begin in range(0, len(task_ids), CHUNK):
        yield task_ids[begin : begin + CHUNK]


def _read(server: redis.Redis, keys: Keys, task_ids: Sequence[bytes], field: str) -> Iterator[int]:
    pipe = server.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.execute_command("HMGET", keys.task(task_id.decode()), field, "submission", "assignment")
    for value, submission, assignment in pipe.execute():
        # The codec is that of the measured tree; records of earlier commits have a field of that name.
        if value:
            yield int(value)
        elif field == "submitted_at":
            yield _parse_submission(submission.decode()).submitted_at
        elif assignment:
            yield getattr(_parse_assignment(assignment.decode()), field)
