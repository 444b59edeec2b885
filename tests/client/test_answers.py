"""An answer meets the fact that it is about, whichever comes first; what never meets is let go, the oldest first."""

from __future__ import annotations

from coord.client.answers import Answer, Answers


def test_an_answer_is_given_once_whichever_comes_first() -> None:
    """The id of the fact, or the answer to it."""
    answers, received = Answers(), list[Answer]()
    answers.expect(("s", "1-1"), received.append)
    answers.receive([("s", "1-1"), ("s", "1-2")], Answer(ok=True))
    assert len(received) == 1
    answers.expect(("s", "1-2"), received.append)
    answers.receive([("s", "1-1")], Answer(ok=False))
    assert [one.ok for one in received] == [True, True]


def test_who_wants_more_is_given_what_came_early_and_what_comes_later() -> None:
    """A fact that tells of several tasks is answered for those that were turned down, and then for the others."""
    answers, received = Answers(), list[str]()

    def take(answer: Answer) -> bool:
        received.append(answer.task_id)
        return bool(answer.task_id)

    answers.receive([("s", "1-1")], Answer(ok=False, task_id="a"))
    answers.receive([("s", "1-1")], Answer(ok=False, task_id="b"))
    answers.expect(("s", "1-1"), take)
    answers.receive([("s", "1-1")], Answer(ok=False, task_id="c"))
    answers.receive([("s", "1-1")], Answer(ok=True))
    answers.receive([("s", "1-1")], Answer(ok=True))
    assert received == ["a", "b", "c", ""]


def test_no_more_are_kept_than_was_said() -> None:
    """Of those awaited and of those that came early, the newest."""
    answers, received = Answers(3), list[Answer]()
    for number in range(10):
        answers.expect(("s", f"1-{number}"), received.append)
    answers.receive([("s", f"1-{number}") for number in range(10)], Answer(ok=True))
    assert len(received) == 3
    for number in range(10):
        answers.expect(("s", f"1-{number}"), received.append)
    assert len(received) == 6  # 4 to 6 came early and were kept; 0 to 3 were let go, 7 to 9 had met


def test_an_answer_that_is_read_again_is_kept_once() -> None:
    """Replies are read again whenever the connection was lost."""
    answers, received = Answers(), list[Answer]()
    for _ in range(3):
        answers.receive([("s", "1-1")], Answer(ok=False, task_id="t1"))
        answers.receive([("s", "1-1")], Answer(ok=True))

    def take(answer: Answer) -> bool:
        received.append(answer)
        return True

    answers.expect(("s", "1-1"), take)
    assert [one.ok for one in received] == [False, True]
