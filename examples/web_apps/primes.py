"""An agent whose tasks take a while and report their progress: it counts prime numbers.

    python examples/web_apps/primes.py --id primes-1

Its tasks have the type ``primes`` and the payload ``{"below": 1000000}``; the result is ``{"primes": 78498}``.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Annotated, Any

import msgspec

from coord import Agent, Task
from coord.errors import CoordError

#: Numbers that are examined between two reports.
SEGMENT = 200_000


class Count(msgspec.Struct):
    """A task's payload."""

    below: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]


def sieve(begin: int, end: int, divisors: list[int]) -> bytearray:
    """Return a byte for each number from ``begin`` up to ``end``: 1 if none of the divisors is a proper divisor."""
    found = bytearray([1]) * (end - begin)
    for divisor in divisors:
        first = max(divisor * divisor, -(-begin // divisor) * divisor)
        found[first - begin :: divisor] = bytes(len(range(first, end, divisor)))
    return found


def count_primes(count: Count, task: Task) -> dict[str, Any]:
    """Handle one task: the sieve of Eratosthenes, a segment at a time."""
    root = math.isqrt(max(count.below - 1, 0)) + 1
    small = [n for n, is_prime in enumerate(sieve(0, root, list(range(2, math.isqrt(root) + 1)))) if is_prime and n > 1]
    primes = 0
    for begin in range(2, count.below, SEGMENT):
        if task.cancelled:
            break  # the result of a cancelled task is dropped
        end = min(begin + SEGMENT, count.below)
        primes += sum(sieve(begin, end, small))
        task.report_progress({"examined": end})
    return {"primes": primes}


def main() -> None:
    """Run the agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Count prime numbers.")
    parser.add_argument("--id", required=True, help="id of this agent, such as primes-1")
    agent = Agent(parser.parse_args().id, agent_type="worker", capacity=2)
    agent.task("primes")(count_primes)
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # Redis is unavailable, or the id is invalid
        sys.exit(f"primes: {error}")
