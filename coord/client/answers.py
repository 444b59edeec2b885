"""Answers to facts: matched by stream and entry id of the fact, whichever arrives first, the id or the answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from coord.errors import CoordError, from_code


class Answer(NamedTuple):
    """What a worker said of one fact."""

    ok: bool
    code: str = ""
    message: str = ""
    data: bytes = b"null"  #: JSON, for facts whose answer says more
    task_id: str = ""  #: the only one that it is about, of several in the fact

    @property
    def error(self) -> CoordError:
        """The error that it stands for, if it is not ok."""
        return from_code(self.code, self.message)


#: A fact that was appended: its stream, without the namespace, and its entry id, which is unique in the stream only.
Appended = tuple[str, str]


def read_answer(fields: Mapping[bytes, bytes]) -> tuple[list[Appended], Answer]:
    """The facts, and the answer to each of them, that an entry of type ``fact.answered`` tells of."""
    stream = fields[b"stream"].decode()
    code = fields.get(b"code", b"").decode("utf-8", "replace")
    message = fields.get(b"message", b"").decode("utf-8", "replace")
    task_id = fields.get(b"task_id", b"").decode()
    answer = Answer(fields.get(b"ok") == b"1", code, message, fields.get(b"data", b"null"), task_id)
    return [(stream, entry) for entry in fields[b"fact"].decode().split()], answer


#: Takes an answer; whether there may be more, since the fact tells of several tasks.
Take = Callable[[Answer], bool | None]


class Answers:
    """Answers awaited and answers that came early; at most ``kept`` of each, so that lost ones do not pile up.

    A fact that was appended twice, because its first answer from Redis was lost, has two entry ids, of which we know
    the second. So an answer may never come: whoever must know looks at the records as well.
    """

    def __init__(self, kept: int = 1_000) -> None:
        self._kept = kept
        # Ordered ones know their first; a dict would look for it among the places of all that were deleted before.
        self._awaited: OrderedDict[Appended, Take] = OrderedDict()
        self._early: OrderedDict[Appended, list[Answer]] = OrderedDict()

    def expect(self, fact: Appended, take: Take) -> None:
        """Call ``take`` with the answer to this fact; at once if it is here."""
        for early in self._early.pop(fact, ()):
            if not take(early):
                return
        self._awaited[fact] = take
        if len(self._awaited) > self._kept:
            self._awaited.popitem(last=False)

    def arrived(self, facts: Iterable[Appended], answer: Answer) -> None:
        """An answer to one or more facts was read."""
        for fact in facts:
            self._arrived(fact, answer)

    def _arrived(self, fact: Appended, answer: Answer) -> None:
        take = self._awaited.get(fact)
        if take is not None:
            if not take(answer):
                del self._awaited[fact]
            return
        early = self._early.setdefault(fact, [])
        if answer not in early:  # replies are read again when the connection was lost
            early.append(answer)
        if len(self._early) > self._kept:
            self._early.popitem(last=False)
