#!/usr/bin/env python3
"""Finds the HTML entities whose names are most like a word, as a program that is kept between its tasks.

    coord agent --capability entities --capacity 2 --keep-alive --wait-ready -- examples/programs/kept_entities.py
    coord tasks submit entities '{"word": "infinity"}' --wait

It needs nothing but Python: a task is a line in, its answer a line out. It prints a line when it has loaded.
"""

from __future__ import annotations

import difflib
import html.entities
import json
import sys
from typing import Any

#: Made once, and used for every task; for a language model it would take a minute.
ENTITIES = {name.rstrip(";"): text for name, text in html.entities.html5.items()}


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """The answer to one task."""
    word = task["payload"].get("word") if isinstance(task["payload"], dict) else None
    if not isinstance(word, str):
        error = {"code": "no_word", "message": "the payload has no field 'word'", "retryable": False}
        return {"task_id": task["task_id"], "error": error}
    near = difflib.get_close_matches(word, ENTITIES, n=3)
    return {"task_id": task["task_id"], "result": {name: ENTITIES[name] for name in near}}


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "task_id" in asked:  # any other line asks to stop a task; this program has always answered before it reads one
        print(json.dumps(answer(asked)), flush=True)
