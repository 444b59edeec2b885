"""A Django app with ordinary, synchronous views that submit tasks and show their progress.

    python examples/web_apps/django_app/app.py runserver --noreload

One ``SyncClient`` at the top of the module serves all threads, connects at the first request, and works after a fork of
the server (gunicorn, uWSGI).
"""

from __future__ import annotations

import functools
import secrets
import sys
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_http_methods

from coord import SyncClient
from coord.errors import CoordError

#: Seconds that a distributor has to admit a task.
ADMIT_S = 10.0
LARGEST = 1_000_000_000
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Primes</title>
<form><label>Primes below <input name="below" type="number" min="0" max="1000000000" value="200000000" required></label>
<button>Count</button></form><progress value="0" aria-label="Progress"></progress> <output></output>
<script>
const [form, bar, out] = ["form", "progress", "output"].map(name => document.querySelector(name))
form.onsubmit = async event => {
  event.preventDefault()
  const url = `/primes/${form.below.value}`
  let answer = await fetch(url, {method: "POST"})
  for (;;) {
    const body = await answer.json()
    if (!answer.ok) return out.value = body.message
    if (body.progress) bar.value = body.progress.examined / form.below.value
    out.value = body.state
    if (body.finished) bar.value = 1
    if (body.finished) return out.value = `${body.state}: ${JSON.stringify(body.result ?? body.error)}`
    await new Promise(resolve => setTimeout(resolve, 300))
    answer = await fetch(url)
  }
}
</script>
"""
client = SyncClient()
View = Callable[..., HttpResponse]


def answers_errors(view: View) -> View:
    """Answer with the status that belongs to an error: 404 for no such task, 503 while Redis is unavailable."""

    @functools.wraps(view)
    def wrapped(request: HttpRequest, **arguments: Any) -> HttpResponse:
        try:
            return view(request, **arguments)
        except CoordError as error:
            return JsonResponse({"code": error.code, "message": str(error)}, status=error.http_status)

    return wrapped


@require_GET
def page(_request: HttpRequest) -> HttpResponse:
    """Return the page."""
    return HttpResponse(PAGE)


@require_http_methods(["GET", "POST"])
@answers_errors
def primes(request: HttpRequest, below: int) -> HttpResponse:
    """POST: submit the task, or find it. GET: the state of the task, which the page reads until it has ended."""
    if below > LARGEST:
        return JsonResponse({"code": "too_large", "message": f"below must be at most {LARGEST}"}, status=422)
    task_id = f"primes-{below}"
    if request.method == "POST":
        client.submit("primes", {"below": below}, task_id=task_id, timeout=600).accepted(timeout=ADMIT_S)
    record = client.task(task_id)
    return JsonResponse(
        {
            "task_id": task_id,
            "state": record.state,
            "progress": record.progress,
            "finished": record.finished_at is not None,
            "result": record.result,
            "error": record.error and record.error.message,
        }
    )


urlpatterns = [path("", page), path("primes/<int:below>", primes)]

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__, SECRET_KEY=secrets.token_urlsafe(), ALLOWED_HOSTS=["127.0.0.1", "localhost"]
    )

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
