"""A conversation as ``coord messages trace`` shows it: a tree, and a sequence diagram."""

from __future__ import annotations

from typing import Any

from coord.cli.conversations import diagram_lines, tree_lines
from coord.models.messages import Conversation, MessageRecord, MessageStatus, RequestState

NOW = 1_700_000_010_000


def message(message_id: str, sender: str, receiver: str, parent: str | None = None, **fields: Any) -> MessageRecord:
    """A record of a message that was sent ten seconds ago."""
    fields.setdefault("status", MessageStatus.DELIVERED)
    return MessageRecord(
        message_id=message_id,
        sender_id=sender,
        receiver_id=receiver,
        message_type="direct",
        priority="normal",
        sent_at=NOW - 10_000,
        expires_at=NOW,
        parent=parent,
        **fields,
    )


TALK = Conversation(
    "talk-1",
    (
        message("q1", "ann", "bob", request=RequestState.TIMED_OUT),
        message("q2", "bob", "cy", "q1", request=RequestState.ANSWERED),
        message("r2", "cy", "bob", "q2", reply_to="q2", failed=True),
        message("t1", "coordinator", "ann", "q1", reply_to="q1", failed=True),
        message("r1", "bob", "ann", "q1", reply_to="q1", late=True),
        message("lost", "ann", "dee", "gone", status=MessageStatus.DEAD, reason="it is answer 17; path: ann > dee"),
    ),
    8,
)


def test_a_tree_shows_who_answered_whom() -> None:
    """Each message below the one that it follows; one whose parent is not kept is a new root."""
    assert list(tree_lines(TALK, NOW)) == [
        "conversation talk-1, 8 messages",
        "├─ ann > bob  direct, request, timed out  10.0 s ago  q1",
        "│  ├─ bob > cy  direct, request, answered  10.0 s ago  q2",
        "│  │  └─ cy > bob  direct, failed reply  10.0 s ago  r2",
        "│  ├─ coordinator > ann  direct, failed reply  10.0 s ago  t1",
        "│  └─ bob > ann  direct, reply, late  10.0 s ago  r1",
        "└─ ann > dee  direct, dead  10.0 s ago  lost: it is answer 17; path: ann > dee",
    ]


def test_an_empty_tree_has_its_title() -> None:
    """No record of it is kept any more."""
    assert list(tree_lines(Conversation("talk-1", (), 1), NOW)) == ["conversation talk-1, 1 message"]


def test_a_diagram_is_mermaid() -> None:
    """In the order of the messages; text cannot end a line or begin an entity."""
    assert list(diagram_lines(TALK)) == [
        "sequenceDiagram",
        "    participant p1 as ann",
        "    participant p2 as bob",
        "    participant p3 as cy",
        "    participant p4 as coordinator",
        "    participant p5 as dee",
        "    p1->>p2: direct, request, timed out",
        "    p2->>p3: direct, request, answered",
        "    p3-->>p2: direct, failed reply",
        "    p4-->>p1: direct, failed reply",
        "    p2-->>p1: direct, reply, late",
        "    p1-xp5: direct, dead",
        "    Note over p1,p5: it is answer 17, path: ann > dee",
    ]


def test_a_broadcast_goes_to_a_number_of_agents() -> None:
    """It has no receiver; what expired unread is marked like what is dead."""
    talk = Conversation(
        "all",
        (
            message("all", "ann", "", recipient_count=2, delivered=2, dead=0),
            message("re", "bob", "ann", "all", reply_to="all", status=MessageStatus.EXPIRED, reason="too late"),
            message("one", "bob", "", "all", recipient_count=1),
        ),
        3,
    )
    assert list(tree_lines(talk, NOW)) == [
        "conversation all, 3 messages",
        "└─ ann > 2 agents  direct  10.0 s ago  all",
        "   ├─ bob > ann  direct, reply, expired  10.0 s ago  re: too late",
        "   └─ bob > 1 agent  direct  10.0 s ago  one",
    ]
    assert list(diagram_lines(talk))[1:6] == [
        "    participant p1 as ann",
        "    participant p2 as 2 agents",
        "    participant p3 as bob",
        "    participant p4 as 1 agent",
        "    p1->>p2: direct",
    ]
