"""Sphinx makes these pages with it: ``make docs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util import logging

import greenback

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "greenback"
author = "the greenback authors"
release = greenback.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"greenback {release}"
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 3
myst_enable_extensions = ["substitution"]
plots = sorted(Path(__file__).parent.glob("plots/*.svg"))
myst_substitutions = {
    "plots": "\n\n".join(f"![{plot.stem}](plots/{plot.name})" for plot in plots)
}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings tell; _core.pyi is for type checkers
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

nitpicky = True
# What other projects document. No inventories are fetched, so that no build depends on a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(asyncio|collections|sniffio|trio)\..*"),
    (r"py:.*", r"contextvars|pdb|IPython\..*"),
    (r"py:exc", r"BaseException|RuntimeError|TypeError"),
    # words in the types of parameters
    (r"py:class", r"(async )?(awaitable|callable|context manager|iterable)|optional"),
]


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page documents; ``make docs`` takes warnings for errors."""
    documented = env.domains.python_domain.objects
    for name in greenback.__all__:
        if f"greenback.{name}" not in documented:
            logging.getLogger(__name__).warning("no page documents greenback.%s", name)


def setup(app: Sphinx) -> None:
    """Let Sphinx call :func:`check_reference` when all pages have been read."""
    app.connect("env-check-consistency", check_reference)
