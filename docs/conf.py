"""The documentation as a site: Sphinx settings. `scripts/docs` builds it; docs/generate has what is made from code."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coord import __version__  # noqa: E402 -- after the path is set

project = "coord"
author = "The coord authors"
release = version = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docs.generate"]
exclude_patterns = ["generate"]
nitpicky = True
suppress_warnings = ["misc.highlighting_failure"]  # sessions show JSON, which no lexer of shells knows
#: Names of other packages: shown without a link.
nitpick_ignore_regex = [("py:.*", r"(?!coord\.).*")]
#: Names of coord that signatures mention and callers do not need.
nitpick_ignore = [
    ("py:class", "coord.agent.agent.F"),  # a type variable: the decorated function
    ("py:class", "coord.agent.run.Runnable"),  # a protocol: an agent
    ("py:class", "coord.agent.task.Attempt"),
    ("py:class", "coord.client.answers.Answer"),
    ("py:class", "coord.client.connection.ClientConnection"),
    ("py:class", "coord.client.outcomes.LazyFuture"),
    ("py:class", "coord.client.outcomes.Watch"),
]

myst_heading_anchors = 4  # the anchors that GitHub makes

toc_object_entries = False  # hundreds of methods would be copied into the navigation of each page
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False

html_theme = "furo"
html_title = f"coord {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
