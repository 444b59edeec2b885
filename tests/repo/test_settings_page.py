"""docs/settings.md lists every setting as ``coord/config.py`` defines it."""

from __future__ import annotations

import pytest

from coord.config import Settings, load, variable_of
from tests.settings_page import PAGE, default, groups, page


def test_the_page_is_current() -> None:
    """The committed page is what the generator writes."""
    assert PAGE.read_text() == page(), "docs/settings.md is not current: run scripts/settings_page"


def test_every_setting_has_a_group_and_a_reason() -> None:
    """In the order of the fields; none without a comment."""
    listed = {field: reason for group in groups() for field, reason in group.settings.items()}
    assert tuple(listed) == Settings.__struct_fields__
    assert [field for field, reason in listed.items() if not reason] == []


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_a_default_can_be_set_as_it_is_shown(field: str) -> None:
    """The value in the table, set as a variable, changes nothing."""
    shown = default(field)
    value = "" if shown == "unset" else shown.split("`")[1]
    assert load({variable_of(field): value}) == Settings()
