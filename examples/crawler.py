"""A web crawler made of synchronous parsers, all at work at once.

Run it with:  python -m greenback [--loop uvloop] examples/crawler.py
It needs aiohttp, and is done in a few seconds.

pydoc writes the documentation of the standard library into a temporary
directory, some 300 linked pages, and an aiohttp server on this machine serves
them, with the delays of a server that is far away. One crawler starts at each
top-level module; the pages of submodules are found by following links. A page
is read by html.parser.HTMLParser, which is plain synchronous code: feed()
calls handle_starttag(), and there a link that nobody has followed yet is
fetched with await_(). The parser stops in the middle of its page until the
answer is there, and the other parsers go on. Each fetched page gets a parser
and a task of its own.

A heartbeat task measures for how long the event loop was ever kept busy. At
the end the crawl is compared with the files on disk; the exit code is 1 if
anything was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pkgutil
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar
from urllib.parse import urldefrag, urljoin, urlsplit

import greenback

try:
    import aiohttp
    from aiohttp import web
except ModuleNotFoundError:
    sys.exit("This demo needs aiohttp: python -m pip install aiohttp")

T = TypeVar("T")

INDEX_PAGE = "index.html"
SERVER_DELAY = (0.1, 0.3)  # seconds, shortest and longest
PIECE = 512  # characters that a parser gets before the others have a turn
BEAT = 0.005  # seconds between two heartbeats

# Importing these opens windows, prints, or finds nothing on most machines;
# encodings are many and all alike.
WITHOUT_PAGE = frozenset(
    "antigravity distutils encodings ensurepip idlelib lib2to3 msilib pydoc_data"
    " test this tkinter turtle turtledemo xxlimited xxlimited_35 xxsubtype".split()
)
WRITE_PAGES = """
import pydoc, sys
for name in sys.argv[1:]:
    try:
        pydoc.writedoc(name)
    except (Exception, SystemExit):
        pass  # a module for another system
"""


class Crawl:
    """What all parsers of one crawl share, and what is counted."""

    def __init__(
        self, session: aiohttp.ClientSession, tasks: asyncio.TaskGroup
    ) -> None:
        self.session = session
        self.tasks = tasks
        self.known: set[str] = set()
        self.pages: dict[str, int] = {}  # size in bytes by name
        self.dead_links: set[str] = set()
        self.in_flight = self.most_in_flight = 0
        self.parsers = self.most_parsers = 0
        self.await_calls = 0

    def wait_for(self, awaitable: Awaitable[T]) -> T:
        """await_(), counted."""
        self.await_calls += 1
        return greenback.await_(awaitable)

    def follow(self, page: str) -> None:
        """Fetch a page that nobody has followed, and start its parser."""
        if page in self.known:
            return
        self.known.add(page)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        content = self.wait_for(self.fetch(page))
        self.in_flight -= 1
        if content is None:
            self.dead_links.add(page)
            return
        self.pages[page] = len(content)
        text = content.decode()
        self.tasks.create_task(greenback.with_portal_run_sync(self.parse, page, text))

    async def fetch(self, page: str) -> bytes | None:
        """Return the page's content, None if there is no such page."""
        async with self.session.get("/" + page) as response:
            if response.status == 404:
                return None
            response.raise_for_status()
            return await response.read()

    def parse(self, page: str, text: str) -> None:
        """Read one page, following its links on the way."""
        self.parsers += 1
        self.most_parsers = max(self.most_parsers, self.parsers)
        parser = LinkFollower(self, page)
        for start in range(0, len(text), PIECE):
            parser.feed(text[start : start + PIECE])
            self.wait_for(asyncio.sleep(0))
        parser.close()
        self.parsers -= 1


class LinkFollower(HTMLParser):
    """A parser as one would write it for synchronous code."""

    def __init__(self, crawl: Crawl, page: str) -> None:
        super().__init__()
        self.crawl = crawl
        self.page = page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href") if tag == "a" else None
        if not target:
            return
        url = urlsplit(urljoin("http://here/" + self.page, target))
        if url.netloc == "here":
            self.crawl.follow(url.path.lstrip("/") or INDEX_PAGE)


class Heartbeat:
    """Beats in the event loop, and notes when it was late."""

    def __init__(self) -> None:
        self.beats = 0
        self.longest_gap = 0.0

    async def run(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            self.beats += 1
            self.longest_gap = max(self.longest_gap, now - last)
            last = now


class Progress:
    """One line that changes on a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.interval = 0.1 if self.is_terminal else 1.0

    def show(self, text: str) -> None:
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]:<{width}}", end="", flush=True)
        else:
            print(text, flush=True)

    def finish(self, text: str) -> None:
        self.show(text)
        if self.is_terminal:
            print()

    async def follow_crawl(self, crawl: Crawl, heart: Heartbeat) -> None:
        while True:
            self.show(
                f"{len(crawl.pages):4} pages   "
                f"{sum(crawl.pages.values()) / 1e6:5.1f} MB   "
                f"{crawl.in_flight:3} in flight   "
                f"{crawl.parsers:3} parsers   "
                f"{heart.beats:5} heartbeats"
            )
            await asyncio.sleep(self.interval)


@contextlib.asynccontextmanager
async def background(*coroutines) -> AsyncIterator[None]:
    """Run coroutines until the end of the block."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def serve(tree: Path) -> AsyncIterator[str]:
    """Serve the files of a directory, give the server's address."""

    @web.middleware
    async def be_far_away(request, handler):
        # A dead link is answered at once.
        if (tree / request.path.lstrip("/")).is_file():
            await asyncio.sleep(random.uniform(*SERVER_DELAY))
        return await handler(request)

    application = web.Application(middlewares=[be_far_away])
    application.router.add_static("/", tree)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def modules_to_describe() -> Iterator[str]:
    """Name the standard library's public modules, found without importing."""
    for name in sorted(sys.stdlib_module_names - WITHOUT_PAGE):
        spec = None if name[0] == "_" else importlib.util.find_spec(name)
        if spec is None:
            continue
        yield name
        for module in pkgutil.iter_modules(
            spec.submodule_search_locations or (), prefix=name + "."
        ):
            last_name = module.name.rpartition(".")[2]
            if last_name[0] != "_" and last_name != "test":
                yield module.name


def write_tree(tree: Path, progress: Progress) -> list[str]:
    """Have pydoc write the pages, in a few processes at once.

    Returns the pages of the top-level modules.
    """
    names = list(modules_to_describe())
    share = min(os.cpu_count() or 1, 4)
    processes = [
        greenback.await_(
            asyncio.create_subprocess_exec(
                *(sys.executable, "-c", WRITE_PAGES, *names[start::share]),
                cwd=tree,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        )
        for start in range(share)
    ]

    async def watch() -> None:
        while True:
            count = sum(1 for _ in tree.iterdir())
            progress.show(f"pydoc has written {count} of {len(names)} pages")
            await asyncio.sleep(progress.interval)

    with greenback.async_context(background(watch())):
        for process in processes:
            greenback.await_(process.wait())
    pages = sorted(path.name for path in tree.glob("*.html"))
    progress.finish(f"pydoc has written {len(pages)} pages")
    return [page for page in pages if page.count(".") == 1]


def read_tree(tree: Path, start_pages: list[str]) -> tuple[dict[str, int], set[str]]:
    """Find what can be reached, by means which the crawler does not use.

    Returns the size of each page on disk, and the links that lead nowhere.
    """
    pages: dict[str, int] = {}
    dead_links = set()
    waiting = list(start_pages)
    while waiting:
        page = waiting.pop()
        if page in pages or page in dead_links:
            continue
        try:
            content = (tree / page).read_bytes()
        except FileNotFoundError:
            dead_links.add(page)
            continue
        pages[page] = len(content)
        for link in re.findall(rb'<a\s[^>]*?\bhref="([^"]*)"', content):
            target = urldefrag(link.decode()).url
            if target == ".":
                waiting.append(INDEX_PAGE)
            elif target and ":" not in target:
                waiting.append(target)
    return pages, dead_links


def crawl_tree(
    tree: Path, start_pages: list[str], progress: Progress
) -> tuple[Crawl, Heartbeat, float]:
    """Crawl everything that can be reached from the start pages."""
    heart = Heartbeat()
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:

        def enter(manager):
            return stack.enter_context(greenback.async_context(manager))

        address = enter(serve(tree))
        session = enter(
            aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0))
        )
        with greenback.async_context(asyncio.TaskGroup()) as tasks:
            crawl = Crawl(session, tasks)
            enter(background(heart.run(), progress.follow_crawl(crawl, heart)))
            for page in start_pages:
                tasks.create_task(greenback.with_portal_run_sync(crawl.follow, page))
    progress.finish(f"{len(crawl.pages)} pages read")
    return crawl, heart, time.perf_counter() - started


def print_table(rows: list[tuple[str, str]]) -> None:
    label_width = max(len(label) for label, _value in rows)
    value_width = max(len(value) for _label, value in rows)
    rule = "-" * (label_width + value_width + 3)
    print(rule)
    for label, value in rows:
        print(f"{label:<{label_width}}   {value:>{value_width}}")
    print(rule)


def report_losses(what: str, crawled: set[str], on_disk: set[str]) -> bool:
    """Print what is missing or too much; return whether anything is."""
    for page in sorted(on_disk - crawled):
        print(f"lost {what}: {page}")
    for page in sorted(crawled - on_disk):
        print(f"{what} that is not on disk: {page}")
    return crawled != on_disk


def main() -> int:
    progress = Progress()
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        start_pages = write_tree(tree, progress)
        crawl, heart, seconds = crawl_tree(tree, start_pages, progress)
        pages, dead_links = read_tree(tree, start_pages)
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    print_table(
        [
            ("event loop", loop),
            ("crawlers started", f"{len(start_pages):,}"),
            ("pages read", f"{len(crawl.pages):,} of {len(pages):,}"),
            (
                "bytes read",
                f"{sum(crawl.pages.values()):,} of {sum(pages.values()):,}",
            ),
            (
                "dead links found",
                f"{len(crawl.dead_links):,} of {len(dead_links):,}",
            ),
            ("most fetches in flight", f"{crawl.most_in_flight:,}"),
            ("most parsers open at once", f"{crawl.most_parsers:,}"),
            ("await_ calls", f"{crawl.await_calls:,}"),
            ("heartbeats", f"{heart.beats:,}"),
            ("longest gap between heartbeats", f"{heart.longest_gap:.3f} s"),
            ("time", f"{seconds:.1f} s"),
        ]
    )
    lost = report_losses(
        "page", {*map(str, crawl.pages.items())}, {*map(str, pages.items())}
    )
    lost |= report_losses("dead link", crawl.dead_links, dead_links)
    if lost or not heart.beats:
        print("Something was lost.")
        return 1
    print("Nothing was lost.")
    return 0


if __name__ == "__main__":
    if not greenback.has_portal():
        sys.exit("Run it with: python -m greenback examples/crawler.py")
    if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_run():
        sys.exit("aiohttp needs asyncio or uvloop: leave --loop trio out")
    sys.exit(main())
