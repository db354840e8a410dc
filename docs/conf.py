"""How Sphinx builds the documentation. Nothing is downloaded: what is here and installed is enough."""

from __future__ import annotations

import builtins
import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "atomscale-bluesky"
author = "the atomscale-bluesky developers"
copyright = f"2026, {author}"
release = importlib.metadata.version("atomscale-bluesky")
version = release.split("+")[0]

extensions = [
    "myst_parser",
    "tables",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}  # the latter for what autosummary writes
root_doc = "index"
smartquotes_action = "qe"  # quotes and ellipses, and no dashes: `--option` stays what a terminal takes
default_role = "code"  # docstrings write `name`, as the prose does
exclude_patterns = ["_build", "_ext", "_scripts", "_static"]

# Every cross-reference has to lead somewhere. Names of other projects cannot, since their inventories would have to
# be fetched; they are let through by name, so that a misspelt name of ours still fails the build.
nitpicky = True
nitpick_ignore = [("py:class", name) for name in dir(builtins)] + [("py:exc", name) for name in dir(builtins)]
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(bluesky|click|collections|concurrent|contextlib|datetime|enum|event_model|fastapi|filelock|logging|msgspec"
        r"|numpy|ophyd|ophyd_async|os|pathlib|queue|requests|rich|starlette|threading|types|typing|typing_extensions)"
        r"(\..*)?",
    ),
    (r"py:.*", r"(Path|Callable|Iterable|Iterator|Mapping|Sequence|Any|Literal.*|optional|Final|Self)"),
]

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autosummary_generate = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

myst_enable_extensions = ["colon_fence", "deflist", "attrs_block", "attrs_inline", "substitution"]
myst_substitutions = {"release": version}
myst_heading_anchors = 3

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "atomscale-bluesky"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
