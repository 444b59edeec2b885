"""Answers to facts, matched by the stream and entry id of the fact. The id or the answer may arrive first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from coord.errors import CoordError, from_code


class Answer(NamedTuple):
    """The answer of a worker to one fact."""

    ok: bool
    code: str = ""
    message: str = ""
    data: bytes = b"null"  #: JSON, for facts whose answer has data
    task_id: str = ""  #: set if the answer is for only one of several tasks in the fact

    @property
    def error(self) -> CoordError:
        """The error that an answer stands for that is not ok."""
        return from_code(self.code, self.message)


#: A fact that was appended: its stream, without the namespace, and its entry id, which is unique in the stream only.
Appended = tuple[str, str]


def read_answer(fields: Mapping[bytes, bytes]) -> tuple[list[Appended], Answer]:
    """Return the facts that an entry of type ``fact.answered`` names, and the answer to each of them."""
    stream = fields[b"stream"].decode()
    code = fields.get(b"code", b"").decode("utf-8", "replace")
    message = fields.get(b"message", b"").decode("utf-8", "replace")
    task_id = fields.get(b"task_id", b"").decode()
    answer = Answer(fields.get(b"ok") == b"1", code, message, fields.get(b"data", b"null"), task_id)
    return [(stream, entry) for entry in fields[b"fact"].decode().split()], answer


#: Called with an answer; returns True if more answers to the same fact may follow (it lists several tasks).
AnswerCallback = Callable[[Answer], bool | None]


class Answers:
    """Expected answers, and answers that arrived early; at most ``kept`` of each, so that lost ones do not accumulate.

    A fact may be appended twice, if the first reply of Redis was lost. Then it has two entry ids, of which the client
    knows the second. So an answer may never arrive; a caller that must know reads the record as well.
    """

    def __init__(self, kept: int = 1_000) -> None:
        self._kept = kept
        # An OrderedDict finds its first item at once; a dict searches past the slots of all deleted items.
        self._expected: OrderedDict[Appended, AnswerCallback] = OrderedDict()
        self._early: OrderedDict[Appended, list[Answer]] = OrderedDict()

    def expect(self, fact: Appended, callback: AnswerCallback) -> None:
        """Call ``callback`` with the answer to this fact; at once if it has arrived already."""
        for early in self._early.pop(fact, ()):
            if not callback(early):
                return
        self._expected[fact] = callback
        if len(self._expected) > self._kept:
            self._expected.popitem(last=False)

    def forget(self, fact: Appended) -> None:
        """Expect no answer to this fact any more."""
        self._expected.pop(fact, None)

    def receive(self, facts: Iterable[Appended], answer: Answer) -> None:
        """Pass on an answer to one or more facts."""
        for fact in facts:
            self._receive(fact, answer)

    def _receive(self, fact: Appended, answer: Answer) -> None:
        callback = self._expected.get(fact)
        if callback is not None:
            if not callback(answer):
                del self._expected[fact]
            return
        early = self._early.setdefault(fact, [])
        if answer not in early:  # replies are read again after a lost connection
            early.append(answer)
        if len(self._early) > self._kept:
            self._early.popitem(last=False)
