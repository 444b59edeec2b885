"""The tests: ordered by what they prove. An assertion that fails in a helper shows its values, as one in a test does."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{path.stem}" for path in Path(__file__).parent.iterdir()))
