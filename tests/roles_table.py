"""The table of roles in docs/http.md, generated from the table of routes; ``scripts/roles_table`` writes it."""

from __future__ import annotations

from coord.gateway.table import ROUTES
from coord.models.api_keys import CallerRole
from tests.repo.documents import ROOT

PAGE = ROOT / "docs" / "http.md"
BEGIN = "<!-- Generated from coord/gateway/table.py by scripts/roles_table. Do not edit. -->\n"
END = "<!-- End of the table. -->\n"


def table() -> str:
    """Return the table: for each role the calls that need it."""
    lines = ["| least role | calls |", "|---|---|"]
    for role in (None, *CallerRole):
        calls = [
            f"`{route.method} {route.plain_path}`{' (own)' if route.own else ''}"
            for route in ROUTES
            if route.role == role
        ]
        if calls:
            lines.append(f"| {role or 'none'} | {', '.join(calls)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with the table as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
