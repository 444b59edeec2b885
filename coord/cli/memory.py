"""Sentences about the server's memory: what uses it, what that stops, and what to do."""

from __future__ import annotations

from coord.models.memory import PLACE_UP_TO, REFUSE_ABOVE, RELIEVE_ABOVE, MemoryUse

#: Kinds that are named in a line.
NAMED = 4
#: What to do about the kind that holds the most.
ADVICE = {
    "dead letters": "retry or purge them (coord dead list)",
    "waiting tasks": "add agents, or submit less",
    "running tasks": "they make room when they end",
    "ended tasks": "keep fewer (COORD_TERMINAL_ENTRIES, COORD_TERMINAL_TTL_S)",
    "replies": "keep fewer bytes of them (COORD_REPLIES_BYTES), or for less long (COORD_REPLIES_TTL_S)",
    "inboxes": "see which agents do not read (coord agents list)",
    "messages": "send them with a shorter time to live",
    "facts in streams": "start the workers that read them (coord worker)",
    "server and other data": "see what else uses this server: other cells, or clients with large buffers",
}


def size(count: float) -> str:
    """Bytes for a person: KiB, MiB or GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def lines(use: MemoryUse) -> list[str]:
    """Return how full the server is, what holds the memory, and what was dropped to free some."""
    of = f" of {size(use.maximum)} ({use.memory.share:.0%})" if use.maximum else ", no maxmemory"
    told = [f"memory: {size(use.used)}{of}: {_holders(use)}" if use.parts else f"memory: {size(use.used)}{of}"]
    if use.results_dropped:
        results = "1 ended task" if use.results_dropped == 1 else f"{use.results_dropped:,} ended tasks"
        told.append(f"{results} gave up result and payload to free memory: {size(use.results_dropped_bytes)} so far")
    if use.note:
        told.append(f"memory: {use.note}")
    return told


def warnings(use: MemoryUse) -> list[str]:
    """Return what the lack of memory stops, with the next step; empty while there is enough."""
    memory = use.memory
    if not memory.is_nearly_full:
        return []
    stops = f"submissions are refused (above {REFUSE_ABOVE:.0%})"
    if memory.is_too_full_to_place:
        stops = f"no task is placed (above {PLACE_UP_TO:.0%}) and {stops}"
    largest = use.parts[0].kind if use.parts else ""
    step = "keep fewer bytes of each log (COORD_LOG_BYTES)" if largest.startswith("log:") else ADVICE.get(largest)
    steps = f"{step}, or raise maxmemory" if step else "raise maxmemory"
    holders = f"; it is held by {_holders(use)}" if use.parts else ""
    told = (
        f"the server's memory is {memory.share:.0%} full ({size(use.used)} of {size(use.maximum)}), so {stops}"
        f"{holders}. Ended tasks give up their results above {RELIEVE_ABOVE:.0%}. Next: {steps}"
    )
    return [told]


def _holders(use: MemoryUse) -> str:
    named = [f"{part.kind} {'about ' if part.is_estimate else ''}{size(part.bytes)}" for part in use.parts[:NAMED]]
    rest = sum(part.bytes for part in use.parts[NAMED:])
    return ", ".join([*named, f"the rest {size(rest)}"] if rest else named)
