#!/usr/bin/env python3
"""Finds the HTML entities with names similar to a word, in a process that is kept between tasks.

    coord agent --capability entities --capacity 2 --keep-alive --wait-ready -- examples/programs/kept_entities.py
    coord tasks submit entities '{"word": "infinity"}' --wait

It needs only Python: a task is a line on standard input, its answer a line on standard output. It prints a line when it
has loaded.
"""

from __future__ import annotations

import difflib
import html.entities
import json
import sys
from typing import Any

#: Built once and used for every task; with a language model this would take a minute.
ENTITIES = {name.rstrip(";"): text for name, text in html.entities.html5.items()}


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one task."""
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
