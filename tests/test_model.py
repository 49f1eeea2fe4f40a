"""A model of tasks with portals: plain async code.

A random program is run twice. *Natively* it is plain ``async``/``await``. *With
portals* parts of it are sync code that calls ``await_``; the same text serves for both,
so that names and lines are the same. A state machine drives both runs by the same
operations, as a runner written by hand: it sends, throws (cancellations, too), closes,
drops, from other threads and from inside other tasks, bestows and removes portals, and
collects garbage. It compares all that can be seen after each.

``GREENBACK_MODEL_EXAMPLES`` says how many examples to try; 200 by default, 20 on
free-threaded builds.

The words: a *world* is one of the two runs, a *node* a piece of a program, a *kind* of
node an async function with the mark ``program``. That function is what runs natively;
with portals it runs as it is ("portal async"), or with all its ``async`` and ``await``
taken out ("portal sync"). Each node says which of the two it wants to be. What both
need to be told in their own way has a name that means something else in each:

===================  ================  ===========================  ===================
name                 native            portal async                 portal sync
===================  ================  ===========================  ===================
``enter``            a coroutine       a call, or a coroutine       a call, or
                                                                    ``await_(coroutine)``
``suspend``          an awaitable      an awaitable                 ``await_(awaitable)``
``isolated``         sets and resets   sets and resets              ``Context.run``
``with_portal``      a coroutine       ``with_portal_run[_sync]``   the same, awaited
``through_c``        a coroutine       a call, or a coroutine       called by C code
``produce``          async generator   async generator              generator, or
                                                                    ``async_iter``
``manager``          async manager     async manager                ``async_context``
===================  ================  ===========================  ===================

Where sync code can't do what async code does, programs don't do it:

- A coroutine that is closed is told so at each of its levels, a sync call stack once.
  So nothing swallows GeneratorExit, and nothing waits while its task is being closed
  (but for one kind of program at its outermost level).
- ``throw()`` raises right in the innermost coroutine; until that has handled it, the
  others are missing from what is being handled and from ``f_back``, and each one that
  it passes sets ``__context__`` anew. Half of the examples don't look at these. In
  the other half ("strict") the native side doesn't throw: what it waits for raises.
"""

from __future__ import annotations

import ast
import asyncio
import collections.abc
import contextlib
import contextvars
import functools
import gc
import inspect
import itertools
import os
import pathlib
import queue
import sys
import sysconfig
import threading
import types
import weakref

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import greenback
from greenback import _core, async_context, async_iter, await_

# Free-threaded builds keep every code object for ever, and look through all at each collection.
DEFAULT_EXAMPLES = 20 if sysconfig.get_config_var("Py_GIL_DISABLED") else 200
EXAMPLES = int(os.environ.get("GREENBACK_MODEL_EXAMPLES", DEFAULT_EXAMPLES))
# Cycles through a stack that waits can be collected, and frames be walked.
DIRECT = greenback.engine == "direct"


class Boom(Exception):
    """What programs raise."""


class Bang(BaseException):
    """The same, of the kind that not everybody catches."""


class Thrown(Exception):
    """What the runner throws."""


class Interrupt(BaseException):
    """The same, of the kind that not everybody catches."""


HANDLERS = (
    Boom,
    Exception,
    (Exception, asyncio.CancelledError),
    BaseException,
)
OPERATIONS = ["send", "throw", "close"]
# A throw() into a coroutine that is dealing with one crashes CPython 3.11.
REENTRANT = OPERATIONS if sys.version_info >= (3, 12) else ["send", "close"]
# throw() into coroutines that deal with an exception leaves frames out of its traceback
# there, natively: no example does without "strict" (see the head of this file).
OLD_THROW = sys.version_info < (3, 12)
INNER_FORMS = ["bestowed", "run", "run_sync", "plain"]
VARIABLES = [contextvars.ContextVar(f"variable{i}", default=0) for i in range(2)]


# --- programs


class Node:
    """A piece of a program; ``flavour`` is for its kind to interpret."""

    def __init__(self, kind, label, sync, flavour, children):
        self.kind = kind
        self.label = label
        self.sync = sync
        self.flavour = flavour
        self.children = children

    def __repr__(self):
        inner = ", ".join(map(repr, self.children))
        mode = "" if self.sync else "async "
        return f"{mode}{self.kind}{self.label}.{self.flavour}({inner})"


# Kinds by name with the number of their children, and how often they are taken.
KINDS = [
    ("wait", 0, 12),
    ("sequence", 3, 9),
    ("catch", 2, 9),
    ("cleanup", 2, 6),
    ("fail", 0, 4),
    ("variable", 1, 4),
    ("iterate", 3, 4),
    ("manage", 3, 4),
    ("isolate", 1, 3),
    ("portal", 1, 4),
    ("c_frame", 1, 4),
    ("hold", 1, 4),
    ("collect", 0, 1),
    ("ensure", 0, 3),
    ("bestow", 0, 1),
    ("remove", 0, 1),
    ("inner", 2, 3),
    ("reenter", 0, 1),
    ("reuse", 0, 1),
    ("frames", 0, 3),
    ("probe", 0, 2),
    ("drive", 0, 3),
]
if sys.version_info < (3, 13):
    # A task that is closed there doesn't close an async generator in which it waits; that
    # ends whenever it is deallocated, and outside of the task.
    KINDS = [entry for entry in KINDS if entry[0] != "iterate"]
DEPTH = 6  # of trees


def decode(data, root="endure"):
    """Make a program of bytes: one thing after the other; what is missing waits.

    One draw of bytes takes hypothesis a small part of the time that drawing a tree
    takes.
    """
    table = [(kind, count) for kind, count, weight in KINDS for _ in range(weight)]
    numbers = collections.deque(data)
    labels = itertools.count()

    def node(depth):
        number = numbers.popleft() if numbers else 0
        flags = numbers.popleft() if numbers else 0
        kind, count = table[number % len(table)] if depth < DEPTH else ("wait", 0)
        label = next(labels)
        children = [node(depth + 1) for _ in range(count)]
        return Node(kind, label, flags % 4 != 3, flags // 4, children)

    children = []
    while numbers:
        children.append(node(0))
    return Node(root, "root", len(data) % 4 != 3, 0, children)


PROGRAM = {}


def program(function):
    """Mark a function as a piece of program text."""
    PROGRAM[function.__name__] = function
    return function


@program
async def wait(t, node):
    """Wait once."""
    t.log("waits", node.label)
    value = await suspend(t, node)
    t.log("goes on", node.label, value, t.variables())
    return value


@program
async def sequence(t, node):
    """Do one thing after the other."""
    for child in node.children:
        await enter(t, child)


@program
async def endure(t, node):
    """The same, whatever happens."""
    for child in node.children:
        try:
            await enter(t, child)
        except (Boom, Thrown, asyncio.CancelledError) as exc:
            t.log("endures", child.label, t.describe(exc))
            if t.closing:
                raise


@program
async def catch(t, node):
    """Catch exceptions; swallow, raise again or replace them."""
    try:
        return await enter(t, node.children[0])
    except HANDLERS[node.flavour % 4] as exc:
        t.log("caught", node.label, t.describe(exc))
        if t.closing or isinstance(exc, GeneratorExit):
            raise
        await enter(t, node.children[1])
        t.log("handled", node.label, t.handled())
        if node.flavour & 12 == 4:
            raise
        if node.flavour & 12 == 8:
            raise Boom(node.label) from exc
        if node.flavour & 28 == 12:
            raise Bang(node.label)  # noqa: B904
    return "caught"


@program
async def cleanup(t, node):
    """Do something in any case."""
    try:
        return await enter(t, node.children[0])
    finally:
        t.log("cleans up", node.label, t.handled())
        await enter(t, node.children[1])
        t.log("has cleaned up", node.label, t.handled())


@program
async def fail(t, node):
    """Raise."""
    t.log("fails", node.label)
    raise (Bang if node.flavour % 4 == 0 else Boom)(node.label)


@program
async def variable(t, node):
    """Set a context variable."""
    t.set(node.flavour % 2, node.label)
    result = await enter(t, node.children[0])
    t.log("variables", node.label, t.variables())
    return result


@program
async def generate(t, node):
    """Yield values; what `iterate` iterates over."""
    t.generators += 1
    try:
        for number in range(3):
            await enter(t, node.children[0])
            t.log("yields", node.label, number)
            yield number
    finally:
        t.log("generator ends", node.label, t.handled())
        await enter(t, node.children[1])
        t.generators -= 1


@program
async def iterate(t, node):
    """Iterate over a generator, maybe not to its end."""
    try:
        async with closing(produce(t, node)) as values:
            async for value in values:
                t.log("iterates", node.label, value)
                await enter(t, node.children[2])
                if value == node.flavour & 3:
                    break
    finally:
        if t.closing:
            # A generator that waits in its close() takes GeneratorExit for its own.
            raise GeneratorExit
    return node.label


@program
async def manage(t, node):
    """Use a context manager."""
    async with manager(t, node) as value:
        t.log("manages", value)
        await enter(t, node.children[2])
    return node.label


@program
async def isolate(t, node):
    """Do something in a copy of the context."""
    result = await isolated(t, node.children[0])
    t.log("outside again", node.label, t.variables())
    return result


@program
async def portal(t, node):
    """Do something with a portal, whether there is one or not."""
    return await with_portal(t, node.children[0])


@program
async def c_frame(t, node):
    """Do something below a C function."""
    return await through_c(t, node)


@program
async def hold(t, node):
    """Keep something alive."""
    token = t.world.token(node.label)
    await enter(t, node.children[0])
    t.log("held", token.label)
    return token.label


@program
async def collect(t, node):
    """Collect garbage."""
    if not t.finalizing:
        t.world.collect_here()


@program
async def ensure(t, node):
    """Call ensure_portal()."""
    t.log("ensures", node.label)
    await ensured(t, node)
    t.log("ensured", node.label, t.variables())


@program
async def bestow(t, node):
    """Call bestow_portal() for the current task."""
    t.world.bestow(t)


@program
async def remove(t, node):
    """Take the portal off the current task."""
    t.world.remove(t)


@program
async def drive(t, node):
    """Be the runner of another task."""
    if not t.finalizing:
        t.log("drives", node.label, t.world.drive_other(t, node))


@program
async def inner(t, node):
    """Be the runner of a task of one's own, and do something in between."""
    if t.finalizing:
        return
    form = "plain" if t.world.unknown_loop else INNER_FORMS[node.flavour % 4]
    task = t.world.spawn(node.children[0], form, parent=t)
    try:
        for number in range(3):
            outcome = t.world.drive_inner(task, number)
            t.log("inner", node.label, outcome)
            if node.flavour & 4:
                await enter(t, node.children[1])
    finally:
        t.log("drops inner", node.label)
        task.drop()


@program
async def reenter(t, node):
    """Drive oneself."""
    if t.finalizing:
        return
    for operation in REENTRANT[node.flavour % len(REENTRANT) :]:
        t.log("reenters", node.label, t.world.reenter(t, operation))


@program
async def reuse(t, node):
    """Await a coroutine twice."""
    coroutine = nothing()
    value = await awaited(coroutine)
    try:
        await awaited(coroutine)
    except RuntimeError as exc:
        t.log("reuses", node.label, value, exc.args)


@program
async def frames(t, node):
    """Look at one's callers."""
    t.log("frames", node.label, t.callers(sys._getframe()))


@program
async def probe(t, node):
    """Ask for portals."""
    t.world.probe(t)


@program
async def stubborn(t, node):
    """As the outermost function: wait although one is told to exit."""
    try:
        for child in node.children:
            await enter(t, child)
        return "done"
    except GeneratorExit:
        if t.finalizing:
            raise
    t.log("is stubborn", node.label)
    t.closing = False
    value = await suspend(t, node)
    t.log("exits", node.label, value)
    return value


async def nothing():
    return "nothing"


# --- what programs wait for


class Raise:
    """Sent to what is waited for, that it may raise."""

    def __init__(self, exc):
        self.exc = exc


def answered(value):
    if not isinstance(value, Raise):
        return value
    try:
        raise value.exc
    finally:
        value.exc.__context__ = None  # throw() leaves it alone


class Trap:
    """Suspends the task once."""

    def __init__(self, t, label):
        self.t = t
        self.label = label

    def __await__(self):
        self.t.leave()
        try:
            return answered((yield (self.t.id, self.label)))
        finally:
            self.t.come_back()


async def trap_coroutine(t, label):
    return await Trap(t, label)


@types.coroutine
def trap_generator(t, label):
    return (yield from Trap(t, label).__await__())


class TrapCoroutine(collections.abc.Coroutine):
    """The same, but neither a coroutine nor a generator."""

    def __init__(self, t, label):
        self.driven = Trap(t, label).__await__()

    def send(self, value):
        return self.driven.send(value)

    def throw(self, *exc):
        return self.driven.throw(*exc)

    def close(self):
        return self.driven.close()

    def __await__(self):
        return self.driven


TRAPS = [Trap, trap_coroutine, trap_generator, TrapCoroutine]


class Ready:
    """Doesn't suspend."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield from ()
        return self.value


# --- the names that programs use, natively


def enter(t, node):
    return NATIVE[node.kind](t, node)


def suspend(t, node):
    if t.closing:
        return Ready("closing")
    return t.world.awaitable(t, node)


async def isolated(t, node):
    before = [variable.get() for variable in VARIABLES]
    try:
        return await enter(t, node)
    finally:
        for index, value in enumerate(before):
            t.set(index, value)


def with_portal(t, node):
    return enter(t, node)


def through_c(t, node):
    return enter(t, node.children[0])


def produce(t, node):
    return NATIVE["generate"](t, node)


async def ensured(t, node):
    if not t.closing:
        t.at_sleep = True
        await asyncio.sleep(0)


def awaited(awaitable):
    return awaitable


closing = contextlib.aclosing


class Manager:
    """Does something when entered and when left; may swallow exceptions."""

    enter = staticmethod(enter)

    def __init__(self, t, node):
        self.t = t
        self.node = node

    async def __aenter__(self):
        return await self.enter(self.t, self.node.children[0])

    async def __aexit__(self, kind, exc, traceback):
        self.t.log("leaves", self.node.label, exc and self.t.describe(exc))
        await self.enter(self.t, self.node.children[1])
        ends = self.t.closing or isinstance(exc, GeneratorExit)
        return bool(self.node.flavour & 1) and not ends


manager = Manager


# --- the same with portals, in async code


def enter_from_async(t, node):
    t.check_portal()
    active = t.has_active_portal()
    if t.closing and t.generators:
        # The collector may finalize a generator before the task, which is no step.
        active = greenback.has_portal()
    if node.sync and active:
        return Ready(call_sync(t, node))
    return PORTAL_ASYNC[node.kind](t, node)


def call_sync(t, node):
    t.sync_depth += 1
    try:
        return PORTAL_SYNC[node.kind](t, node)
    finally:
        t.sync_depth -= 1


def sync_call(t, node):
    """What to give with_portal_run_sync()."""
    if sys.version_info >= (3, 12):
        return call_sync, t, node
    # f(*args) is a call from C there, which holds args where no collector sees them.
    return (lambda: call_sync(t, node),)


def suspend_from_async(t, node):
    t.trap_in_sync = False
    return suspend(t, node)


async def isolated_from_async(t, node):
    before = [variable.get() for variable in VARIABLES]
    try:
        return await enter_from_async(t, node)
    finally:
        for index, value in enumerate(before):
            t.set(index, value)


async def with_portal_from_async(t, node):
    if t.is_unchecked():
        return await enter_from_async(t, node)
    own = not t.has_active_portal()
    t.scopes += own
    try:
        if node.sync:
            return await greenback.with_portal_run_sync(*sync_call(t, node))
        return await greenback.with_portal_run(PORTAL_ASYNC[node.kind], t, node)
    finally:
        t.scopes -= own


def through_c_from_async(t, node):
    return enter_from_async(t, node.children[0])


def produce_from_async(t, node):
    return PORTAL_ASYNC["generate"](t, node)


async def ensured_from_async(t, node):
    if t.closing:
        return
    t.at_sleep = True
    unknown = t.world.unknown_loop
    if not unknown and not t.has_active_portal():
        t.base = t.fresh = True
    t.leave()
    try:
        await (asyncio.sleep(0) if unknown else greenback.ensure_portal())
    finally:
        t.come_back()


class ManagerFromAsync(Manager):
    @staticmethod
    async def enter(t, node):
        t.handed_to_c += 1
        try:
            return await enter_from_async(t, node)
        finally:
            t.handed_to_c -= 1


# --- and in sync code


def enter_from_sync(t, node):
    t.check_portal()
    if node.sync:
        return call_sync(t, node)
    return await_(PORTAL_ASYNC[node.kind](t, node))


def suspend_from_sync(t, node):
    t.trap_in_sync = True
    return await_(suspend(t, node))


def isolated_from_sync(t, node):
    if t.finalizing:
        return enter_from_sync(t, node)
    t.handed_to_c += 1
    t.own_contexts += 1
    try:
        return contextvars.copy_context().run(enter_from_sync, t, node)
    finally:
        t.own_contexts -= 1
        t.handed_to_c -= 1


def with_portal_from_sync(t, node):
    return await_(with_portal_from_async(t, node))


def through_c_from_sync(t, node):
    function = functools.partial(enter_from_sync, t)
    t.c_depth += 1
    try:
        if node.flavour % 3 == 0:
            return next(map(function, node.children))
        if node.flavour % 3 == 1:
            return functools.reduce(lambda _, child: function(child), node.children, 0)
        results = []
        sorted(node.children, key=lambda child: results.append(function(child)))
        return results[0]
    finally:
        t.c_depth -= 1


def produce_from_sync(t, node):
    if node.flavour & 4:
        return PORTAL_SYNC["generate"](t, node)
    return async_iter(PORTAL_ASYNC["generate"](t, node))


def ensured_from_sync(t, node):
    return await_(ensured_from_async(t, node))


def manager_from_sync(t, node):
    return async_context(ManagerFromAsync(t, node))


class WithoutAsync(ast.NodeTransformer):
    """Makes sync code of async code by leaving out the words."""

    def visit_Await(self, tree):
        return self.visit(tree.value)

    def replace(self, tree, type):
        self.generic_visit(tree)
        fields = {name: getattr(tree, name) for name in tree._fields}
        return ast.copy_location(type(**fields), tree)

    def visit_AsyncFunctionDef(self, tree):
        return self.replace(tree, ast.FunctionDef)

    def visit_AsyncFor(self, tree):
        return self.replace(tree, ast.For)

    def visit_AsyncWith(self, tree):
        return self.replace(tree, ast.With)


def program_text(transformer, names):
    """The functions marked as program text, compiled anew, with other meanings."""
    module = ast.parse(pathlib.Path(__file__).read_text(encoding="utf-8"))
    module.body = [tree for tree in module.body if getattr(tree, "name", "") in PROGRAM]
    for tree in module.body:
        tree.decorator_list = []
    module = transformer.visit(module)
    namespace = {**globals(), **names}
    exec(compile(module, FILE, "exec", dont_inherit=True), namespace)
    return {name: namespace[name] for name in PROGRAM}


FILE = enter.__code__.co_filename
NATIVE = program_text(ast.NodeTransformer(), {})
PORTAL_ASYNC = program_text(
    ast.NodeTransformer(),
    {
        "enter": enter_from_async,
        "suspend": suspend_from_async,
        "isolated": isolated_from_async,
        "with_portal": with_portal_from_async,
        "through_c": through_c_from_async,
        "produce": produce_from_async,
        "ensured": ensured_from_async,
        "manager": ManagerFromAsync,
    },
)
PORTAL_SYNC = program_text(
    WithoutAsync(),
    {
        "enter": enter_from_sync,
        "suspend": suspend_from_sync,
        "isolated": isolated_from_sync,
        "with_portal": with_portal_from_sync,
        "through_c": through_c_from_sync,
        "produce": produce_from_sync,
        "ensured": ensured_from_sync,
        "manager": manager_from_sync,
        "awaited": await_,
        "closing": contextlib.closing,
    },
)


# --- tasks and worlds


class Token:
    def __init__(self, label):
        self.label = label


class Task:
    """A task of either world.

    From ``base`` on, the attributes are the model of its portal; only the world with
    portals looks at them.
    """

    def __init__(self, world, id, parent):
        self.world = world
        self.id = id
        self.parent = parent
        self.inner = []  # tasks that it drives, as their runner
        self.context = contextvars.Context()
        self.holder = None  # an asyncio task, which is what can have a portal
        self.coroutine = None  # if there is no holder
        self.is_call = False  # of with_portal_run or with_portal_run_sync
        self.running = False
        self.closing = False  # what goes on now is to end it
        self.finalizing = False  # nobody drives it any more
        self.garbage = False  # ends when it is collected, and logs apart
        self.at_sleep = False  # suspended in asyncio.sleep(0), which doesn't answer
        self.generators = 0  # that are being iterated over
        self.base = False  # there is a portal on its outermost coroutine,
        self.fresh = False  # which works from the next step on,
        self.removing = False  # and goes away when nothing waits in await_
        self.scopes = 0  # calls of with_portal_run that have made a portal
        self.sync_depth = 0
        self.c_depth = 0  # C functions among them,
        self.handed_to_c = 0  # C functions that the collector knows from 3.14 on
        self.thrown = False  # throw() or close(), C functions, may be on its stack
        self.own_contexts = 0  # calls of Context.run among them
        self.trap_in_sync = False  # where it suspended last
        self.home = None  # thread in which it is suspended in await_

    def log(self, *entry):
        root = self
        while root is not None and not root.garbage:
            root = root.parent
        self.world.note((self.id, *entry), root is not None)

    def is_exact(self):
        """Whether what is being handled looks the same in sync code."""
        return self.world.strict and not (self.closing or self.world.closings)

    def describe(self, exc, known=None):
        """An exception with its cause, context and the frames of programs it passed."""
        if exc is None or isinstance(exc, GeneratorExit):
            return type(exc).__name__  # it has other contexts in sync code
        known = [] if known is None else known
        if exc in known:
            return known.index(exc)
        known.append(exc)
        lines = []
        traceback = exc.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            started = traceback.tb_lineno != code.co_firstlineno
            if is_of_program(traceback.tb_frame) and started:
                lines.append((code.co_name, traceback.tb_lineno))
            traceback = traceback.tb_next
        # The interpreter calls a coroutine with a portal a generator.
        args = repr(exc.args).replace("generator ignored", "coroutine ignored")
        parts = [type(exc).__name__, args, lines]
        parts.append(self.describe(exc.__cause__, known))
        if self.is_exact():
            parts.append(self.describe(exc.__context__, known))
        if isinstance(exc, BaseExceptionGroup):
            parts += [self.describe(inner, known) for inner in exc.exceptions]
        return parts

    def handled(self):
        exc = sys.exception()
        return repr(exc) if self.is_exact() else None

    def callers(self, frame):
        """The frames of programs from here to the runner."""
        found = []
        while DIRECT and self.is_exact() and frame.f_code is not ATTEMPT:
            if is_of_program(frame):
                found.append((frame.f_code.co_name, frame.f_lineno))
            frame = frame.f_back
        return found

    def variables(self):
        """A finalizer runs in anybody's context."""
        if self.finalizing:
            return None
        return [variable.get() for variable in VARIABLES]

    def set(self, index, value):
        if not self.finalizing:
            VARIABLES[index].set(value)

    def get_coroutine(self):
        return self.coroutine if self.holder is None else self.holder.get_coro()

    def state(self):
        """What introspection tells."""
        coroutine = self.get_coroutine()
        frame = coroutine.cr_frame
        state = [
            inspect.getcoroutinestate(coroutine),
            coroutine.cr_await is None,
            coroutine.cr_running,
            inspect.iscoroutine(coroutine),
            coroutine.__qualname__,
            frame is None,
        ]
        if frame is not None and not self.is_call:
            state.append(frame.f_lineno)
        return state

    def drop(self):
        """Drop the last reference to its coroutine."""
        if self.world.ask(self.needs_task):
            self.world.drive(self, "close", None)
        self.prepare_drop()
        self.garbage = True
        self.world.unsettled = True
        self.parent.inner.remove(self)
        self.holder = self.coroutine = None

    def prepare_drop(self):
        self.closing = self.finalizing = True
        if self.fresh:  # a portal that has done no step yet does none
            self.base = False
        for t in self.inner:  # the collector may begin with them
            t.prepare_drop()

    # The model of the portal.

    def has_active_portal(self):
        return (self.base and not self.fresh) or self.scopes > 0

    def waits_in_await(self):
        return self.sync_depth > 0

    def waits_for_base(self):
        return self.sync_depth > 0 and self.scopes == 0

    def can_be_collected(self):
        """Whether it can while it waits in await_."""
        # What C functions hold can't be seen by the collector; what waits in a portal
        # that is not on the outermost coroutine can't always be unwound by it.
        kept = self.c_depth or self.thrown or self.scopes or not DIRECT
        kept = kept or self.generators  # an async generator is driven by C code
        if sys.version_info < (3, 14):
            kept = kept or self.handed_to_c
        if self.waits_in_await() and kept:
            return False
        return all(t.can_be_collected() for t in self.inner)

    def has_thrown(self):
        return self.thrown or any(t.has_thrown() for t in self.inner)

    def needs_task(self):
        """Whether its clean-up has to know the current task: finalizers have none."""
        return self.own_contexts > 0 and self.home == threading.get_ident()

    def leave(self):
        """It is about to be suspended."""
        if self.removing and not self.waits_for_base():
            self.base = self.removing = False
        if self.waits_in_await():
            self.home = threading.get_ident()

    def come_back(self):
        if not self.finalizing:
            self.fresh = False
        self.home = None

    def is_unchecked(self):
        return self.finalizing or (self.world.unknown_loop and self.parent is not None)

    def check_portal(self):
        if self.is_unchecked():
            return
        if greenback.has_portal() != self.has_active_portal():
            self.world.problem("has_portal()", self)


def is_of_program(frame):
    code = frame.f_code
    return code.co_filename == FILE and code.co_name in PROGRAM


class Helper:
    """A thread that calls functions for others."""

    def __init__(self):
        self.jobs = queue.SimpleQueue()
        self.results = queue.SimpleQueue()
        threading.Thread(target=self.body, daemon=True).start()
        self.ident = self.call(threading.get_ident)

    def body(self):
        while self.do(self.jobs.get()):
            pass

    def do(self, job):
        result = None
        try:
            result = job and (True, job())
        except BaseException as exc:
            result = (False, exc)
        del job
        self.results.put(result)
        return result is not None

    def call(self, job):
        self.jobs.put(job)
        del job
        fine, value = self.results.get()
        if not fine:
            raise value
        return value

    def end(self):
        self.jobs.put(None)


class HandLoop:
    """As much of a loop as a task needs that is driven by hand."""

    def call_soon(self, callback, *args, context=None):
        pass

    def call_exception_handler(self, context):
        pass

    def get_debug(self):
        return False


LOOPS = threading.local()


def as_current_task(task, call):
    """Call with an asyncio task as the current one, as a loop would."""
    loop = running = asyncio._get_running_loop()
    if loop is None:
        loop = LOOPS.__dict__.setdefault("loop", HandLoop())
        asyncio._set_running_loop(loop)
    outer = asyncio.current_task(loop)
    if outer is not None:
        asyncio.tasks._leave_task(loop, outer)
    asyncio.tasks._enter_task(loop, task)
    try:
        return call()
    finally:
        asyncio.tasks._leave_task(loop, task)
        if outer is not None:
            asyncio.tasks._enter_task(loop, outer)
        asyncio._set_running_loop(running)


# C tasks of 3.11 hide their Context: one that is driven inside a step of another one's
# with_portal_run can't be told from that.
TASK = asyncio.Task if sys.version_info >= (3, 12) else asyncio.tasks._PyTask


class LoopError(Exception):
    """What a runner handles while it drives."""


def below_c(depth, call):
    """Call with some C frames in between."""
    return below_c(depth - 1, lambda: next(map(apply, [call]))) if depth else call()


def apply(call):
    return call()


class World:
    """One of the two runs. The other one answers its questions, or asks them."""

    def __init__(self, strict, unknown_loop, questions):
        self.strict = strict
        self.unknown_loop = unknown_loop
        self.questions = questions
        self.tasks = {}
        self.ids = iter(range(10**6))
        self.journal = []
        self.late_journals = {}  # of garbage, by task
        self.unraisable = []
        self.problems = []
        self.tokens = weakref.WeakSet()
        self.condemned = []  # to become cyclic garbage
        self.unsettled = False
        self.nesting = 0
        self.closings = 0  # steps under way that are to end a task

    def note(self, entry, late):
        if late:
            self.late_journals.setdefault(entry[0], []).append(entry)
        else:
            self.journal.append(entry)

    def problem(self, *what):
        self.problems.append(repr(what))

    def token(self, label):
        token = Token(label)
        self.tokens.add(token)
        return token

    def awaitable(self, t, node):
        t.at_sleep = False
        return TRAPS[node.flavour % len(TRAPS)](t, node.label)

    def spawn(self, node, form, parent=None):
        """Make a task; natively and with portals it gets the same name."""
        t = Task(self, next(self.ids), parent)
        t.is_call = form in ("run", "run_sync")
        coroutine = self.make_coroutine(t, node, form)
        if self.unknown_loop:
            t.coroutine = coroutine
        else:
            t.holder = TASK(coroutine, loop=HandLoop(), context=t.context)
            t.holder._log_destroy_pending = False
        if form == "bestowed":
            self.bestow(t)
        if parent is None:
            self.tasks[t.id] = t
        else:
            parent.inner.append(t)
        return t

    def drive(self, t, operation, argument, handling=False, depth=0):
        """One step of a task, or the attempt."""
        if t.running:
            return attempt(t, operation, argument)
        delivery = self.ask(lambda: self.delivery(t, operation, argument))
        if delivery == "send":
            operation, argument = "send", None
        elif delivery == "raise" or (delivery == "split" and self.is_native):
            operation, argument = "send", Raise(argument)
        step = functools.partial(t.context.run, attempt, t, operation, argument)
        if t.holder is not None:
            step = functools.partial(as_current_task, t.holder, step)
        t.closing = operation == "close" or isinstance(argument, GeneratorExit)
        t.thrown = operation != "send" or (t.thrown and t.waits_in_await())
        closing = t.closing
        t.running = True
        t.fresh = False
        self.nesting += 1
        self.closings += closing
        try:
            if not handling:
                return below_c(depth, step)
            try:
                raise LoopError
            except LoopError as exc:
                exc.__traceback__ = None  # what is suspended may keep it
                return below_c(depth, step)
        finally:
            self.nesting -= 1
            self.closings -= closing
            t.running = False

    def drive_other(self, t, node):
        """From inside a task: drive another one, if that is possible."""
        others = list(self.tasks.values())
        if not others or self.nesting > 2:
            return None
        other = others[node.flavour % len(others)]
        if not self.ask(lambda: other.running or self.may_drive_inside(other)):
            return None
        operation = OPERATIONS[(0, 0, 1, 0, 2)[node.flavour % 5]]
        argument = Thrown(node.label) if operation == "throw" else None
        return self.drive(other, operation, argument)

    def drive_inner(self, t, number):
        """The same with a task of the task's own."""
        if not self.ask(lambda: t.home in (None, threading.get_ident())):
            return None
        if number == 2:
            return self.drive(t, "throw", Thrown(number))
        return self.drive(t, "send", number or None)

    def reenter(self, t, operation):
        """Drive a task that runs."""
        return attempt(t, operation, Thrown() if operation == "throw" else None)

    def collect(self):
        self.condemned.clear()
        gc.collect()

    def collect_here(self):
        self.unsettled = True
        self.collect()

    def state(self):
        return {t.id: t.state() for t in self.tasks.values()}


# How a task gets its portal; "stubborn" ones have one level of coroutines only.
FORMS = {
    "bestowed": "bestowed",
    "bestowed stubborn": "bestowed",
    "run": "run",
    "run_sync": "run_sync",
    "run_sync stubborn": "run_sync",
    "plain": "plain",
    "plain stubborn": "plain",
}


def attempt(t, operation, argument):
    """Send, throw or close; tell what comes of it."""
    arguments = () if operation == "close" else (argument,)
    given = argument.exc if isinstance(argument, Raise) else argument
    try:
        result = getattr(t.get_coroutine(), operation)(*arguments)
    except StopIteration as stop:
        return "returned", stop.value
    except BaseException as exc:
        same = exc is given or isinstance(exc, GeneratorExit)
        told = "raised", t.describe(exc), same
        exc.__traceback__ = None  # or the runner's frames stay with it
        return told
    return "yielded", result


ATTEMPT = attempt.__code__


class NativeWorld(World):
    is_native = True

    def ask(self, question):
        if self.questions:
            return self.questions.popleft()
        self.problem("asks more")
        return False

    def make_coroutine(self, t, node, form):
        if form == "run":
            return with_portal_run(NATIVE[node.kind], t, node)
        coroutine = NATIVE[node.kind](t, node)
        if form == "run_sync":
            coroutine.__name__ = coroutine.__qualname__ = "with_portal_run_sync"
        return coroutine

    def bestow(self, t):
        pass

    def remove(self, t):
        pass

    def probe(self, t):
        pass

    def settle(self):
        self.unsettled = False


async def with_portal_run(function, *args):
    """What stands in its place natively."""
    return await function(*args)


class PortalWorld(World):
    is_native = False

    def __init__(self, *args):
        super().__init__(*args)
        self.main = threading.get_ident()

    def ask(self, question):
        answer = question()
        self.questions.append(answer)
        return answer

    def make_coroutine(self, t, node, form):
        if form == "run":
            t.base = t.fresh = True
            return greenback.with_portal_run(PORTAL_ASYNC[node.kind], t, node)
        if form == "run_sync":
            t.base = t.fresh = True
            return greenback.with_portal_run_sync(*sync_call(t, node))
        return PORTAL_ASYNC[node.kind](t, node)

    def bestow(self, t):
        if t.holder is None or t.finalizing:
            return
        greenback.bestow_portal(t.holder)
        if t.running and t.scopes:
            return  # has the portal of the call
        t.removing = False
        if not t.base:
            t.base = t.fresh = True

    def remove(self, t):
        if t.holder is None or t.finalizing:
            return
        _core.remove_portal(t.holder)
        if t.base and not t.fresh and (t.running or t.waits_for_base()):
            t.removing = True
        else:
            t.base = t.fresh = False

    def probe(self, t):
        """Ask in the current task for its portal; use it if there is none."""
        t.check_portal()
        if t.holder is None or t.is_unchecked():
            return
        if greenback.has_portal(t.holder) != t.has_active_portal():
            self.problem("has_portal(current)", t)
        if not t.has_active_portal():
            with pytest.raises(RuntimeError, match="portal"):
                await_(nothing())

    def delivery(self, t, operation, argument):
        """How an exception is to be thrown; see the head of this file."""
        if (
            operation != "throw"
            or not self.strict
            or isinstance(argument, GeneratorExit)
            or t.state()[0] != inspect.CORO_SUSPENDED
        ):
            return "throw"
        if t.at_sleep:
            return "send"
        # With scopes, coroutines around them would have it thrown into them, too.
        return "split" if t.trap_in_sync and not t.scopes else "raise"

    def may_drive_inside(self, t):
        """Whether a task can be driven in a step of another one."""
        if t.home not in (None, threading.get_ident()):
            return False
        # Of a loop that nobody knows there is but one task.
        return not self.unknown_loop or t.state()[0] != inspect.CORO_CREATED

    def settle(self):
        """Let each thread end what was dropped where that was not possible."""
        self.unsettled = False
        for call in (apply, HELPER.call):
            call(one_step)
        gc.collect()

    def state(self):
        for t in self.tasks.values():
            if t.holder is None or t.state()[0] == inspect.CORO_CLOSED:
                continue
            has_portal = t.base or t.scopes > 0
            if not t.base and t.generators:
                continue  # what a generator awaits can't be told from outside
            if greenback.has_portal(t.holder) != has_portal:
                self.problem("has_portal(task)", t.id, has_portal)
        return super().state()


def one_step():
    with contextlib.suppress(StopIteration):
        greenback.with_portal_run_sync(int).send(None)


# --- the machine with a runner written by hand

HELPER = None
PROGRAMS = st.binary(min_size=16, max_size=96)
STEPS = st.binary(min_size=8, max_size=48)
NUMBER = st.integers(0, 255)
ACTIONS = [*["send"] * 13, *["throw"] * 5, "close", "collect", "change", "drop"]
WHERES = [*[""] * 7, "elsewhere", "refused", "handling", "deeper"]


class Machine(RuleBasedStateMachine):
    """Two worlds, and to compare them."""

    def __init__(self):
        super().__init__()
        gc.freeze()  # collections look at what this example makes only
        self.worlds = []
        self.failed = False

    def both(self, function, *args):
        """Do something in both worlds, and compare."""
        self.failed = True
        outcomes = []
        for world in self.worlds:
            with listening_for_unraisable(world):
                # Finalizers run in the context of the moment.
                outcome = contextvars.Context().run(function, world, *args)
                if world.unsettled:
                    world.settle()
            world.unraisable.sort()  # the collector has an order of its own
            outcomes.append(outcome)
        self.compare("outcome", outcomes)
        for name in (
            "journal",
            "late_journals",
            "unraisable",
            "problems",
        ):
            self.compare(name, [getattr(world, name) for world in self.worlds])
        if self.worlds[1].problems:
            raise AssertionError(self.worlds[1].problems)
        self.failed = False
        return outcomes[0]

    def compare(self, name, pair):
        portal, native = pair
        assert portal == native, f"{name}: with portals {portal}, natively {native}"
        if name == "journal":
            for journal in pair:
                journal.clear()

    @invariant()
    def same_states(self):
        if self.worlds:
            self.compare("states", [world.state() for world in self.worlds])
            assert not greenback.has_portal()

    def same_tokens(self):
        self.compare(
            "tokens",
            [sorted(token.label for token in world.tokens) for world in self.worlds],
        )

    def pick(self, number):
        """The task with portals; one that has ended only if need be."""
        tasks = self.worlds[0].tasks.values()
        alive = [t for t in tasks if t.state()[0] != inspect.CORO_CLOSED]
        tasks = alive if alive and number % 4 != 3 else list(tasks)
        return tasks[number % len(tasks)]


@contextlib.contextmanager
def listening_for_unraisable(world):
    def hook(info):
        world.unraisable.append(repr(info.exc_value))

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class BareMachine(Machine):
    """The operations."""

    @initialize(
        strict=st.booleans(),
        unknown_loop=st.sampled_from([False, False, False, True]),
        programs=st.tuples(PROGRAMS, PROGRAMS),
        form=NUMBER,
        steps=STEPS,
    )
    def begin(self, strict, unknown_loop, programs, form, steps):
        questions = collections.deque()
        for kind in PortalWorld, NativeWorld:
            self.worlds.append(kind(strict or OLD_THROW, unknown_loop, questions))
        for data in programs:
            self.create(data, form)
            form //= 16
        self.steps(steps)

    @rule(data=PROGRAMS, form=NUMBER)
    def create(self, data, form):
        form = list(FORMS)[form % len(FORMS)]
        if self.worlds[0].unknown_loop:
            form = form.replace("plain", "run_sync").replace("bestowed", "run_sync")
        node = decode(data, form.partition(" ")[2] or "endure")
        note(f"{form} task: {node}")
        self.both(lambda world: world.spawn(node, FORMS[form]) and None)

    def has_task(self):
        return bool(self.worlds) and bool(self.worlds[0].tasks)

    @precondition(has_task)
    @rule(data=STEPS)
    def steps(self, data):
        for first, second in zip(data[::2], data[1::2], strict=False):
            if self.has_task():
                self.operate(ACTIONS[first % len(ACTIONS)], second)

    def operate(self, action, number):
        t = self.pick(number)
        number //= 4
        if action == "collect":
            self.collect()
        elif action == "change":
            self.change_portal(t.id, bool(number & 1))
        elif action == "drop":
            id = t.id
            del t  # or it could not be collected
            self.forget(id, number & 1, number & 2)
        else:
            where = WHERES[number % len(WHERES)]
            if action == "send" and t.state()[0] == inspect.CORO_CREATED:
                number = int(number == 1)
            self.step(t, action, number, where)

    def step(self, t, operation, number, where):
        note(f"task {t.id}: {operation} {number} {where}")
        here = "elsewhere" if t.home == HELPER.ident else ""
        if t.home is None:
            here = "elsewhere" if "elsewhere" in where else ""
        elif "refused" in where and not t.scopes:  # else its own await would be
            call = apply if here else HELPER.call
            call(lambda: self.refuse(t, operation, number))
            return

        def do(world):
            step = functools.partial(
                world.drive,
                world.tasks[t.id],
                operation,
                argument_of(operation, number),
                "handling" in where,
                3 if "deeper" in where else 0,
            )
            return HELPER.call(step) if here else step()

        self.both(do)

    def refuse(self, t, operation, number):
        """A step in another thread than the one in which it is suspended."""
        arguments = [] if operation == "close" else [argument_of(operation, number)]
        with pytest.raises(RuntimeError, match="thread"):
            t.context.run(getattr(t.get_coroutine(), operation), *arguments)

    @precondition(has_task)
    @rule(number=NUMBER, cycle=st.booleans(), elsewhere=st.booleans())
    def drop(self, number, cycle, elsewhere):
        self.forget(self.pick(number).id, cycle, elsewhere)

    def forget(self, id, cycle, elsewhere):
        t = self.worlds[0].tasks[id]
        if t.own_contexts:
            self.step(t, "close", 0, "")
        cycle = cycle and t.can_be_collected()
        right = HELPER.call if t.home == HELPER.ident else apply
        if t.scopes:
            call = right
        else:
            call = HELPER.call if elsewhere else apply
        late = cycle or call is not right
        collect = cycle and t.home == HELPER.ident
        del t

        def do(world):
            task = world.tasks.pop(id)
            task.prepare_drop()
            task.garbage = late
            world.unsettled = late
            if cycle:
                world.condemned.append(task)
                if collect:
                    del task
                    world.collect()
            else:
                call(functools.partial(drop_references, task))

        self.both(do)

    @rule()
    def collect(self):
        self.both(World.collect_here)
        # A throw() that is under way holds tracebacks, natively or with portals.
        if not any(t.has_thrown() for t in self.worlds[0].tasks.values()):
            self.same_tokens()

    def change_portal(self, id, remove):
        note(f"task {id}: {'remove' if remove else 'bestow'}")
        state = self.worlds[0].tasks[id].state()[0]
        if remove and state != inspect.CORO_CREATED:
            self.both(lambda world: world.remove(world.tasks[id]))
        elif state != inspect.CORO_CLOSED:
            self.both(lambda world: world.bestow(world.tasks[id]))

    def teardown(self):
        if self.failed:
            with listening_for_unraisable(World(False, False, None)):
                self.worlds.clear()
                gc.collect()
        if not self.worlds:
            return
        for id in list(self.worlds[0].tasks):
            self.forget(id, id & 1, id & 2)
        self.collect()
        self.compare("tokens", [list(self.worlds[0].tokens), []])


THROWN = [
    Thrown,
    GeneratorExit,
    Thrown,
    asyncio.CancelledError,
    Interrupt,
    asyncio.CancelledError,
    Thrown,
    Boom,
]


def argument_of(operation, number):
    if operation == "throw":
        return THROWN[number % len(THROWN)](*[number][: number % 3])
    return number or None


def drop_references(task):
    task.holder = task.coroutine = None


@pytest.fixture(autouse=True)
def no_automatic_collections():
    global HELPER
    gc.disable()
    HELPER = Helper()
    try:
        yield
    finally:
        HELPER.end()
        gc.enable()
        gc.unfreeze()


# A task is driven inside of others which were driven from where it was.
@pytest.mark.overlaps
@pytest.mark.timeout(60 + EXAMPLES)
def test_bare_runner():
    run_state_machine_as_test(
        BareMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=12,
            deadline=None,
            derandomize="GREENBACK_MODEL_EXAMPLES" not in os.environ,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
