"""Two forms of one program: `program.py` as it stands, and with sync functions."""

import ast
import asyncio
import contextlib
import pathlib
import types

import greenback

PROGRAM = pathlib.Path(__file__).with_name("program.py")
FORMS = ("native", "portal")


def call(function, *arguments):
    """Make the syntax tree of a call of one of greenback's functions."""
    module = ast.Name("greenback", ast.Load())
    return ast.Call(ast.Attribute(module, function, ast.Load()), [*arguments], [])


class MakeSync(ast.NodeTransformer):
    """Turns async functions whose names ask for it into sync ones."""

    def __init__(self):
        self.inside = [""]

    def visit_AsyncFunctionDef(self, node):
        """Drop the ``async`` of ``async def sync_...``."""
        self.inside.append(node.name)
        self.generic_visit(node)
        self.inside.pop()
        if not node.name.startswith("sync_"):
            return node
        fields = {name: getattr(node, name) for name in node._fields}
        return ast.copy_location(ast.FunctionDef(**fields), node)

    def visit_Await(self, node):
        """Call sync functions, and let sync functions wait for others by await_.

        What is called ``scoped_...`` calls them by with_portal_run_sync.
        """
        self.generic_visit(node)
        value = node.value
        if (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id.startswith("sync_")
        ):
            if not self.inside[-1].startswith("scoped_"):
                return ast.copy_location(value, node)
            made = ast.Await(call("with_portal_run_sync", value.func, *value.args))
        elif self.inside[-1].startswith("sync_"):
            made = call("await_", value)
        else:
            return node
        return ast.fix_missing_locations(ast.copy_location(made, node))


def load(form, look, pause, gate=None):
    """Give a new module of the program, in one of its forms."""
    tree = ast.parse(PROGRAM.read_text())
    if form == "portal":
        tree = MakeSync().visit(tree)
    module = types.ModuleType("program")
    module.__file__ = str(PROGRAM)
    exec(compile(tree, str(PROGRAM), "exec"), module.__dict__)
    module.greenback = greenback
    module.look = look
    module.pause = pause
    module.gate = gate or pause
    module.start = greenback.ensure_portal if form == "portal" else pause
    return module


# --- for scripts, which do without pytest's fixtures ------------------------------


def pause_on(loop):
    """Give the function that lets other tasks of this loop run once."""
    if loop != "trio":
        return lambda: asyncio.sleep(0)
    import trio

    return trio.lowlevel.checkpoint


def event_on(loop):
    """Make an event for tasks of this loop."""
    if loop != "trio":
        return asyncio.Event()
    import trio

    return trio.Event()


def run_on(loop, async_fn):
    """Run an async function on the loop of this name."""
    if loop == "trio":
        import trio

        return trio.run(async_fn)
    factory = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(async_fn())


@contextlib.asynccontextmanager
async def started(loop, async_fns):
    """Run the functions in tasks that end before the block does."""
    if loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            for async_fn in async_fns:
                nursery.start_soon(async_fn)
            yield
    else:
        async with asyncio.TaskGroup() as group:
            for number, async_fn in enumerate(async_fns):
                group.create_task(async_fn(), name=f"task {number}")
            yield
