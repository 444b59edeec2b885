"""The tests: ordered by what they prove. A failing assertion of a helper shows its values, as in a test."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{path.stem}" for path in Path(__file__).parent.iterdir()))
