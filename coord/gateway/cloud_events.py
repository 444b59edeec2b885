"""Events as CloudEvents 1.0, encoded as JSON.

    {"specversion": "1.0", "id": "1767225600123-0.17", "source": "/coord/coord/log/tasks",
     "type": "coord.task.completed", "subject": "tasks/t-17", "time": "2026-01-01T00:00:00.123+00:00",
     "datacontenttype": "application/json", "position": "0.1767225600000.1767225600123_17.0.1767225599980",
     "data": {"task_id": "t-17", "agent_id": "a1"}}

``source`` and ``id`` identify an event: they are the same in every gateway. ``id`` is that of the entry in the log, and
the number of the event in it if the entry has several. ``position`` is an extension attribute: what a listener names to
continue after the event. Fields that only an agent's own process may know are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from coord.clock import now_ms
from coord.gateway.event_filter import DOMAIN
from coord.gateway.schemas import iso
from coord.models.events import RESET, TRIMMED, Event

#: Type of the event in place of events that were lost for a listener.
GAP = f"{DOMAIN}gap"
#: Fields that are left out: a caller that knows an agent's incarnation could act as its process.
_HIDDEN = "incarnation"
#: field -> the path of the record that it names: the subject is the first one that an event has.
_SUBJECTS = {"task_id": "tasks/", "message_id": "messages/", "agent_id": "agents/"}
#: type of an event for lost entries -> reason of the gap.
_REASONS = {TRIMMED: "trimmed", RESET: "reset"}


class CloudEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str = ""
    time: str
    datacontenttype: str
    position: str
    data: Mapping[str, object]


class EventEncoder:
    """Encodes the events of one cell.

    Args:
        namespace: of the cell.
    """

    def __init__(self, namespace: str) -> None:
        self._source = f"/coord/{namespace}"
        self._json = msgspec.json.Encoder()
        self._time = (-1, "")  # events of one entry have the same time

    def encode(self, event: Event, number: int, position: str) -> bytes:
        """Return an event as JSON.

        Args:
            event: the event.
            number: of the event in its entry, from 1; 0 if it is the only one.
            position: of the event in all logs.
        """
        fields: Mapping[str, object] = event.fields
        if event.type in _REASONS:
            return self._gap(_REASONS[event.type], position, f"{event.id}-gap", event.log, event.fields)
        if _HIDDEN in fields:
            fields = {name: value for name, value in fields.items() if name != _HIDDEN}
        if self._time[0] != event.at:
            self._time = (event.at, iso(event.at))
        named = next((name for name in _SUBJECTS if fields.get(name)), None)
        return self._json.encode(
            CloudEvent(
                specversion="1.0",
                id=f"{event.id}.{number}" if number else event.id,
                source=f"{self._source}/log/{event.log}",
                type=DOMAIN + event.type,
                subject="" if named is None else f"{_SUBJECTS[named]}{fields[named]}",
                time=self._time[1],
                datacontenttype="application/json",
                position=position,
                data=fields,
            )
        )

    def encode_slow(self, position: str) -> bytes:
        """Return the gap of a listener that read too slowly: it has read up to ``position``."""
        return self._gap("slow", position, f"{position}-gap", "", {})

    def _gap(self, reason: str, position: str, gap_id: str, log: str, fields: Mapping[str, str]) -> bytes:
        missed = int(fields["missed"]) if "missed" in fields else None
        data = {"reason": reason, "log": log or None, "missed": missed, "resume_from": position}
        return self._json.encode(
            CloudEvent(
                specversion="1.0",
                id=gap_id,
                source=f"{self._source}/log/{log}" if log else self._source,
                type=GAP,
                time=iso(now_ms()),
                datacontenttype="application/json",
                position=position,
                data={name: value for name, value in data.items() if value is not None},
            )
        )
