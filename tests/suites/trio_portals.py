"""A pytest plugin: every Trio task gets a portal."""

import portals

portals.in_trio()
