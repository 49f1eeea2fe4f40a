"""``greenback.set_trace``: pdb that can await, in a terminal."""

from __future__ import annotations

import os
import re
import sys

import pytest

# Windows has no terminals of this kind, nor engines.
pytest.importorskip("pty")

from terminal import ASYNCIO_LOOPS, LOOPS, Terminal

PDB = "(Pdb) "
# From 3.13 on pdb stops at the call of set_trace itself, before that after it.
STOPS_AT_CALL = sys.version_info >= (3, 13)

# What the programs need to be written once for all loops.
PRELUDE = """\
import sys
import greenback
from greenback import await_
if sys.argv[1] == "trio":
    import trio
    sleep, sleep_forever, Event = trio.sleep, trio.sleep_forever, trio.Event
    run = trio.run
    spawn = trio.lowlevel.spawn_system_task
else:
    import asyncio
    from asyncio import sleep, Event
    tasks = []
    def spawn(fn):
        tasks.append(asyncio.create_task(fn()))
        return tasks[-1]
    async def sleep_forever():
        await asyncio.get_running_loop().create_future()
    def run(fn):
        if sys.argv[1] == "asyncio":
            asyncio.run(fn())
        else:
            import uvloop
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(fn())
async def forever():
    async def say():
        print("waiting", flush=True)
    spawn(say)
    await sleep_forever()
async def get(value):
    await sleep(0)
    return value
async def fail():
    await sleep(0)
    raise ValueError("from fail")
def with_portal(fn):
    async def main():
        await greenback.ensure_portal()
        return await fn()
    return main
"""


@pytest.fixture(scope="module")
def bytecode(tmp_path_factory):
    """Where compiled modules are kept: starting would take long without."""
    return str(tmp_path_factory.mktemp("bytecode"))


@pytest.fixture
def environment(tmp_path, bytecode):
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONINSPECT")
    }
    variables |= {
        "PYTHONPYCACHEPREFIX": bytecode,
        "PYTHONBREAKPOINT": "greenback.set_trace",
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "NO_COLOR": "1",
    }
    return variables


@pytest.fixture
def start(tmp_path, environment):
    """Start a program in a terminal; wait for the first prompt."""
    terminals = []

    def start_program(text, loop="", *, prelude=PRELUDE, prompt=PDB):
        (tmp_path / "program.py").write_text(prelude + text)
        terminal = Terminal("program.py", loop, cwd=tmp_path, env=environment)
        terminals.append(terminal)
        terminal.introduction = terminal.expect(prompt)
        return terminal

    yield start_program
    for terminal in terminals:
        terminal.__exit__()


def play(terminal, *dialogue):
    """Enter each line of the dialogue, compare what is printed."""
    for line, expected in dialogue:
        assert terminal.enter(line, PDB).rstrip() == expected, terminal.transcript


def place(text):
    """Return the line of the program in which pdb says it stopped."""
    stopped = re.search(r"^-> (.*)", text, re.MULTILINE)
    assert stopped is not None, text
    return stopped[1]


def assert_ends(terminal, printed):
    terminal.type("c\n")
    output, code = terminal.end()
    assert output.partition("\n")[2] == printed, terminal.transcript
    assert code == 0


SYNC_PROGRAM = """
def double(number):
    local = number
    breakpoint()
    local += 1
    return 2 * local
async def main():
    print(list(map(double, [3])))
run(with_portal(main))
"""

ASYNC_PROGRAM = """
async def double(number):
    local = number
    breakpoint()
    local += 1
    return 2 * local
async def main():
    print([await double(3)])
run(with_portal(main))
"""

PROGRAMS = pytest.mark.parametrize(
    "program", [SYNC_PROGRAM, ASYNC_PROGRAM], ids=["sync", "async"]
)


# Awaiting


@pytest.mark.parametrize("loop", LOOPS)
@PROGRAMS
def test_await(start, loop, program):
    terminal = start(program, loop)
    play(
        terminal,
        ("await get(number)", "3"),
        ("!await get(number)", "3"),
        ("await get('text')", "'text'"),
        ("await get(None)", ""),
        ("p await get('text')", "'text'"),
        ("p await get(None)", "None"),
        ("pp await get(['a' * 40, 'b' * 40])", f"['{'a' * 40}',\n '{'b' * 40}']"),
        ("whatis await get(5)", "<class 'int'>"),
        ("await get(1); await get(2)", "1\n2"),
        ("[await get(i) for i in range(number)]", "[0, 1, 2]"),
        ("await_(get(7))", "7"),
        ("sorted([1, 2], key=lambda x: -await_(get(x)))", "[2, 1]"),
        ("local = await get(10)", ""),
        ("p local", "10"),
    )
    assert_ends(terminal, "[22]\n")


@PROGRAMS
def test_names(start, program):
    terminal = start(program, "asyncio")
    play(
        terminal,
        # `a`, `r` and `n` are commands, too.
        ("a = await get(4)", ""),
        ("r = await get(5)", ""),
        ("n = await get(6)", ""),
        ("p a, r, n", "(4, 5, 6)"),
        # Code inside of the statement
        ("await get([i + number for i in range(2)])", "[3, 4]"),
        ("await get(list(i + number for i in range(2)))", "[3, 4]"),
        ("await get((lambda: (number, len('abc'), run.__name__))())", "(3, 3, 'run')"),
        ("m = await get((lambda: number + 1)())", ""),
        ("p m", "4"),
        ("global G; G = await get((lambda: 8)())", ""),
        ("p globals()['G']", "8"),
    )
    # Another frame
    assert place(terminal.enter("up", PDB)) == (
        "print(list(map(double, [3])))"
        if program is SYNC_PROGRAM
        else "print([await double(3)])"
    )
    play(
        terminal,
        ("await get(number)", "*** NameError: name 'number' is not defined"),
        ("await get(len(tasks))", "0"),
    )
    terminal.enter("down", PDB)
    play(terminal, ("local = await get((lambda: local + 1)())", ""))
    assert_ends(terminal, "[10]\n")


def test_several_lines(start):
    terminal = start(SYNC_PROGRAM, "asyncio")
    more = "...   "
    terminal.enter("async with asyncio.timeout(None):", more)
    terminal.enter("    for i in range(2):", more)
    terminal.enter("        await get(i)", more)
    assert terminal.enter("", PDB) == "0\n1\n"
    terminal.enter("for i in range(3):", more)
    terminal.enter("    print(await_(get(i)))", more)
    assert terminal.enter("", PDB) == "0\n1\n2\n"
    # Repeated by an empty line, as any statement
    assert terminal.enter("", PDB) == "0\n1\n2\n"
    # Broken off
    terminal.enter("async with asyncio.timeout(None):", more)
    terminal.interrupt()
    terminal.expect(PDB)
    play(terminal, ("await get(3)", "3"))
    assert_ends(terminal, "[8]\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_other_tasks_run_meanwhile_and_are_not_traced(start, loop):
    text = """
events = []
async def other():
    await events[0].wait()
    print(sys.gettrace(), flush=True)
    events[1].set()
async def main():
    events.extend([Event(), Event()])
    spawn(other)
    await sleep(0)
    breakpoint()
    print("end")
run(with_portal(main))
"""
    terminal = start(text, loop)
    play(
        terminal,
        ("events[0].set()", ""),
        ("await events[1].wait()", "None" + "\nTrue" * (loop != "trio")),
    )
    assert_ends(terminal, "end\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_errors_are_shown(start, loop):
    terminal = start(SYNC_PROGRAM, loop)
    play(
        terminal,
        ("await fail()", "*** ValueError: from fail"),
        ("p await fail()", "*** ValueError: from fail"),
        ("pp await fail()", "*** ValueError: from fail"),
        ("r = await fail()", "*** ValueError: from fail"),
        ("await_(fail())", "*** ValueError: from fail"),
        ("await missing()", "*** NameError: name 'missing' is not defined"),
        ("p await missing()", "*** NameError: name 'missing' is not defined"),
        ("await", "*** SyntaxError: invalid syntax"),
        ("p await get(", "*** SyntaxError: '(' was never closed"),
        ("await get(1) +", "*** SyntaxError: invalid syntax"),
        ("await get(1/0)", "*** ZeroDivisionError: division by zero"),
        ("await greenback.with_portal_run_sync(sys.exit)", "*** SystemExit"),
    )
    assert terminal.enter("await 3", PDB).startswith("*** TypeError: ")
    assert terminal.enter("await_(3)", PDB).startswith("*** TypeError: ")
    play(
        terminal,
        (
            "display await fail()",
            "display await fail(): ** raised ValueError: from fail **",
        ),
        ("display await get(local)", "display await get(local): 3"),
        ("await get('usable')", "'usable'"),
    )
    assert_ends(terminal, "[8]\n")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("task", ["main", "child"])
def test_interrupts(start, loop, task):
    text = """
def debugged():
    breakpoint()
    return "end"
async def child():
    print(debugged(), flush=True)
    await_(sleep(0))
    done[0].set()
done = []
async def main():
    done.append(Event())
    if TASK == "main":
        await child()
    else:
        spawn(with_portal(child))
        await done[0].wait()
    if "asyncio" in globals():
        print(asyncio.current_task().cancelling())
def hang(): import threading; threading.Event().wait()
def cling():
    try:
        await_(forever())
    finally:
        await_(sleep(0))
run(with_portal(main))
"""
    terminal = start(text.replace("TASK", repr(task)), loop)
    for line in [
        "await forever()",
        "value = await forever()",
        "p await forever()",
        "await_(forever())",
        "[*map(await_, [forever()])]",
        "cling()",
        "[await forever() for i in range(2)]",
    ]:
        if line == "cling()" and loop == "trio":
            continue  # Trio cancels what the clean-up awaits, too
        terminal.enter(line, "waiting\n")
        terminal.interrupt()
        assert terminal.expect(PDB) == "*** KeyboardInterrupt\n"
        play(terminal, ("await get('usable')", "'usable'"))
    # What does not wait in the loop
    terminal.type("print('hanging') or hang()\n")
    terminal.expect("\nhanging\n")
    terminal.interrupt()
    assert terminal.expect(PDB) == "*** KeyboardInterrupt\n"
    # The prompt
    terminal.type("some text")
    terminal.expect("some text")
    terminal.interrupt()
    assert "--KeyboardInterrupt--" in terminal.expect(PDB)
    play(terminal, ("await get('usable')", "'usable'"))
    assert_ends(terminal, "end\n" + "0\n" * (loop != "trio"))


def test_interrupt_after_continue_enters_debugger(start):
    text = """
async def main():
    breakpoint()
    await forever()
run(with_portal(main))
"""
    terminal = start(text, "asyncio")
    terminal.type("c\n")
    terminal.expect("waiting\n")
    terminal.interrupt()
    terminal.expect("Program interrupted.")
    terminal.expect(PDB)
    # Here the loop itself is debugged.
    assert "no task of an event loop" in terminal.enter("await get(1)", PDB)
    terminal.type("q\n")


@pytest.mark.parametrize("loop", ASYNCIO_LOOPS)
def test_cancellation_by_others_is_not_lost(start, loop):
    text = """
async def main():
    task = asyncio.current_task()
    async def cancel():
        task.cancel("by another task")
    breakpoint()
    try:
        await sleep(0)
        print("lost")
    except asyncio.CancelledError:
        print("cancelled", task.cancelling())
    task.uncancel()
run(with_portal(main))
"""
    terminal = start(text, loop)
    assert "CancelledError" in terminal.enter(
        "await asyncio.gather(cancel(), sleep_forever())", PDB
    )
    play(terminal, ("await get('usable')", "'usable'"))
    assert_ends(terminal, "cancelled 1\n")


def test_scope_left_open_at_the_prompt(start):
    pytest.importorskip("trio")
    terminal = start(SYNC_PROGRAM, "trio")
    play(
        terminal,
        ("manager = trio.open_nursery(); nursery = await manager.__aenter__()", ""),
        ("nursery.start_soon(fail)", ""),
    )
    assert "Cancelled" in terminal.enter("await sleep_forever()", PDB)
    assert "ExceptionGroup" in terminal.enter(
        "await manager.__aexit__(None, None, None)", PDB
    )
    play(terminal, ("await get('usable')", "'usable'"))
    assert_ends(terminal, "[8]\n")


# Stepping


BUSY_PROGRAM = """
stop = False
async def busy():
    while not stop:
        double(0)
        await sleep(0)
def double(number):
    result = await_(get(number))
    return 2 * result
def quadruple(number):
    first = double(number)
    second = double(first)
    return second
async def debugged():
    breakpoint()
    result = quadruple(5)
    await sleep(0)
    result += await get(1)
    return result
async def main():
    global stop
    for _ in range(3):
        spawn(with_portal(busy))
    await sleep(0)
    await sleep(0)
    print(await debugged())
    stop = True
run(with_portal(main))
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_stepping_stays_in_the_task(start, loop):
    terminal = start(BUSY_PROGRAM, loop)

    def go(command, expected):
        printed = terminal.enter(command, PDB)
        assert place(printed) == expected, terminal.transcript
        return printed

    if STOPS_AT_CALL:
        go("n", "result = quadruple(5)")
    assert "--Call--" in go("s", "def quadruple(number):")
    go("n", "first = double(number)")
    go("n", "second = double(first)")
    go("s", "def double(number):")
    go("n", "result = await_(get(number))")
    assert "--Call--" in go("s", "async def get(value):")
    go("n", "await sleep(0)")
    play(terminal, ("await get(value)", "10"))
    go("n", "return value")
    go("up", "result = await_(get(number))")
    play(terminal, ("p number", "10"))
    go("down", "return value")
    go("n", "return 2 * result")
    assert "--Return--" in go("r", "return 2 * result")
    go("n", "return second")
    assert "--Return--" in go("s", "return second")
    go("s", "await sleep(0)")
    go("n", "result += await get(1)")
    go("until", "return result")
    play(terminal, ("p result", "21"))
    assert_ends(terminal, "21\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_step_over_a_suspension_of_the_prompt(start, loop):
    text = """
def body():
    breakpoint()
    x = 1
    y = await_(get(x))
    z = await_(get(y))
    return z
async def main():
    print(body())
run(with_portal(main))
"""
    terminal = start(text, loop)
    if STOPS_AT_CALL:
        terminal.enter("n", PDB)
    for line in ["y = await_(get(x))", "z = await_(get(y))", "return z"]:
        play(terminal, ("await get(0)", "0"))
        assert place(terminal.enter("n", PDB)) == line
    assert_ends(terminal, "1\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_breakpoints_stop_in_every_task(start, loop):
    text = """
def stopped(name):
    name = name.upper()
    return name
async def other():
    await sleep(0)
    print(stopped("other"), flush=True)
    done[0].set()
done = []
async def main():
    done.append(Event())
    breakpoint()
    spawn(with_portal(other))
    await done[0].wait()
    print(stopped("main"))
run(with_portal(main))
"""
    terminal = start(text, loop)
    terminal.enter("b stopped", PDB)
    more = "(com) "
    terminal.enter("commands 1", more)
    terminal.enter("p await get(name)", more)
    terminal.enter("end", PDB)
    assert terminal.enter("c", PDB).startswith("'other'\n")
    play(terminal, ("await get(name)", "'other'"))
    assert place(terminal.enter("n", PDB)) == "return name", terminal.transcript
    printed = terminal.enter("c", PDB)
    assert printed.startswith("OTHER\n'main'\n"), terminal.transcript
    play(terminal, ("await get(name)", "'main'"))
    terminal.enter("clear 1", PDB)
    assert_ends(terminal, "MAIN\n")


COMMANDS = """p 1
n
w
x = 5
p x
r = 3
a
l 1, 4
whatis x
display x
u
d
s
n
undefined
p undefined
1 +
import os; os.sep
!print(x)
for i in x
source main
tbreak main
c
s
r
unt
j 1
ll
retval
"""


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_is_pdb_otherwise(start, tmp_path, kind):
    text = """
import asyncio
def inner(a, b=2):
    TRACE()
    x = a + b
    x += 1
    return x
def main():
    for a in range(2):
        inner(a)
    return 1
async def async_main():
    if greenback.bestow_portal(asyncio.current_task()) is None:
        await asyncio.sleep(0)
    return main()
"""
    text += "main()\n" if kind == "sync" else "asyncio.run(async_main())\n"
    (tmp_path / "script").write_text(COMMANDS)
    transcripts = []
    for trace in ("pdb.set_trace", "greenback.set_trace"):
        terminal = start(
            text.replace("TRACE", trace), prelude="import pdb, greenback\n"
        )
        for line in COMMANDS.splitlines():
            terminal.enter(line, PDB)
        transcripts.append(terminal.transcript.replace(trace, "TRACE"))
        terminal.type("q\n")
    assert transcripts[1] == transcripts[0]


# Where it is called


@pytest.mark.parametrize("loop", LOOPS)
def test_task_without_portal(start, loop):
    text = """
async def main():
    value = 1
    breakpoint()
    value = 2
    await sleep(0)
    value = 3
    print(value)
run(main)
"""
    terminal = start(text, loop)
    lines = terminal.introduction.splitlines()
    assert "greenback.ensure_portal()" in lines[0]
    assert "python -m greenback" in lines[0]
    assert lines[1].startswith("> ")
    for command in ("await get(value)", "p await get(value)", "x = await get(value)"):
        printed = terminal.enter(command, PDB)
        assert printed.startswith("*** RuntimeError: ")
        assert "greenback.ensure_portal()" in printed
    play(terminal, ("p value", "1"))
    while place(printed := terminal.enter("n", PDB)) != "value = 3":
        assert "greenback" not in printed
    # The task has been suspended: now it has a portal.
    play(terminal, ("await get(value)", "2"), ("value = await get(5)", ""))
    terminal.enter("n", PDB)
    assert_ends(terminal, "3\n")


def test_no_task(start):
    terminal = start("breakpoint()\nprint('end')\n", prelude="")
    assert "greenback" not in terminal.introduction
    printed = terminal.enter("await missing()", PDB)
    assert "no task of an event loop is running" in printed
    assert_ends(terminal, "end\n")


def test_callback_of_the_loop(start):
    text = """
async def main():
    asyncio.get_running_loop().call_soon(breakpoint)
    await sleep(0)
    print("end")
run(with_portal(main))
"""
    terminal = start(text, "asyncio")
    printed = terminal.enter("await get(1)", PDB)
    assert "no task of an event loop is running" in printed
    terminal.type("c\n")
    assert terminal.end() == ("c\nend\n", 0)


def test_header(start):
    terminal = start("breakpoint(header='the header')\npass\n", prelude="")
    assert terminal.introduction.startswith("the header\n> ")


def test_wrong_argument(start):
    with pytest.raises(EOFError, match=r"set_trace\(\) got an unexpected keyword"):
        start("breakpoint(head='the header')\n", prelude="")


def test_forbidden_section(start):
    text = """
async def main():
    with greenback.forbid_await("a lock is held"):
        breakpoint()
        print("inside")
run(with_portal(main))
"""
    terminal = start(text, "asyncio")
    printed = terminal.enter("await get(1)", PDB)
    assert printed.startswith("*** RuntimeError: ")
    assert "a lock is held" in printed
    assert_ends(terminal, "inside\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_another_task_at_its_prompt_meanwhile(start, loop):
    text = """
async def other():
    name = "other"
    breakpoint()
    print("other goes on", flush=True)
    event[0].set()
event = []
async def main():
    name = "main"
    event.append(Event())
    spawn(with_portal(other))
    breakpoint()
    print("end")
run(with_portal(main))
"""
    terminal = start(text, loop)
    play(terminal, ("p name", "'main'"))
    terminal.enter("await event[0].wait()", PDB)
    play(terminal, ("p name", "'other'"), ("await get(name)", "'other'"))
    terminal.enter("await forever()", "waiting\n")
    terminal.interrupt()
    assert terminal.expect(PDB) == "*** KeyboardInterrupt\n"
    printed = terminal.enter("c", PDB)
    assert printed.startswith("other goes on\n")
    play(terminal, ("p name", "'main'"), ("await get(name)", "'main'"))
    # Ctrl-C is still the prompt's.
    terminal.enter("await forever()", "waiting\n")
    terminal.interrupt()
    assert terminal.expect(PDB) == "*** KeyboardInterrupt\n"
    assert_ends(terminal, "end\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_prompts_that_end_in_another_order(start, loop):
    text = """
events = []
async def other():
    name = "other"
    breakpoint()
    print("other goes on", flush=True)
    events[1].set()
async def main():
    name = "main"
    events.extend([Event(), Event()])
    spawn(with_portal(other))
    breakpoint()
    print("main goes on", flush=True)
    await events[1].wait()
    1 + await get(1)
    print("end")
run(with_portal(main))
"""
    terminal = start(text, loop)
    terminal.enter("await events[0].wait()", PDB)
    play(terminal, ("p name", "'other'"), ("events[0].set()", ""))
    # The other's prompt awaits while main's comes back and is left.
    terminal.enter("await sleep_forever()", PDB)
    play(terminal, ("p name", "'main'"))
    terminal.type("c\n")
    terminal.expect("main goes on\n")
    terminal.interrupt()
    assert terminal.expect(PDB) == "*** KeyboardInterrupt\n"
    play(terminal, ("p name", "'other'"), ("1 + 1", "2"))
    assert_ends(terminal, "other goes on\nend\n")


def test_calls_in_what_is_evaluated_are_skipped(start):
    text = """
def helper():
    breakpoint()
    return await_(get(7))
async def main():
    breakpoint()
    print(helper())
run(with_portal(main))
"""
    terminal = start(text, "asyncio")
    play(
        terminal,
        ("helper()", "7"),
        ("p helper()", "7"),
        ("await greenback.with_portal_run_sync(helper)", "7"),
    )
    # But not afterwards.
    assert "helper()" in terminal.enter("c", PDB)
    assert_ends(terminal, "7\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_in_another_thread(start, loop):
    text = """
import threading
async def main():
    name = threading.current_thread().name
    breakpoint()
    name = await get(name)
    print(name)
thread = threading.Thread(target=run, args=[with_portal(main)], name="second")
thread.start()
thread.join()
"""
    terminal = start(text, loop)
    play(terminal, ("await get(name)", "'second'"), ("name = await get('n')", ""))
    if STOPS_AT_CALL:
        terminal.enter("n", PDB)
    assert "print(name)" in terminal.enter("n", PDB)
    assert_ends(terminal, "n\n")


CUSTOM_RUNNER = """
import types
import greenback
from greenback import await_
@types.coroutine
def trap(value):
    return (yield value)
def debugged():
    try:
        breakpoint()
        print("went on")
    finally:
        print("finally")
coroutine = greenback.with_portal_run_sync(debugged)
print("trapped", coroutine.send(None), flush=True)
"""


def test_any_coroutine_runner(start):
    text = CUSTOM_RUNNER + "try: coroutine.send('answer')\nexcept StopIteration: pass"
    terminal = start(text, prelude="")
    play(terminal, ("await trap(5)", "trapped 5\n'answer'"))
    assert_ends(terminal, "went on\nfinally\n")


@pytest.mark.parametrize(
    "line", ["await trap(5)", "p await trap(5)", "await_(trap(5))"]
)
def test_task_is_closed_during_an_await(start, line):
    terminal = start(CUSTOM_RUNNER + "coroutine.close()\nprint('closed')\n", prelude="")
    terminal.type(line + "\n")
    terminal.expect(line + "\n")
    output, code = terminal.end()
    assert code == 0
    assert output.startswith("trapped 5\n")
    assert output.endswith("finally\nclosed\n")
    assert "went on" not in output
    assert PDB not in output


def test_commands_of_pdbrc(start, tmp_path):
    (tmp_path / ".pdbrc").write_text("p await get('from pdbrc')\n")
    terminal = start(SYNC_PROGRAM, "asyncio")
    assert "'from pdbrc'" in terminal.introduction
    assert_ends(terminal, "[8]\n")


def test_interact_can_await(start):
    terminal = start(SYNC_PROGRAM, "asyncio")
    terminal.enter("interact", ">>> ")
    assert terminal.enter("await_(get(number))", ">>> ") == "3\n"
    terminal.type("\x04")
    terminal.expect(PDB)
    assert_ends(terminal, "[8]\n")


def test_pdb_itself_is_left_alone(start):
    text = """
import pdb
async def main():
    breakpoint()
    pdb.set_trace()
    try:
        1 / 0
    except ZeroDivisionError as error:
        pdb.post_mortem(error.__traceback__)
run(with_portal(main))
"""
    terminal = start(text, "asyncio")
    play(terminal, ("await get(1)", "1"))
    for _ in range(2):
        terminal.enter("c", PDB)
        assert "SyntaxError: 'await' outside" in terminal.enter("await get(1)", PDB)
    terminal.type("q\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_under_the_runner(start, tmp_path, environment, loop):
    prelude = PRELUDE.replace("sys.argv[1]", repr(loop))
    (tmp_path / "script.py").write_text(prelude + "breakpoint()\nprint('end')\n")
    arguments = ["-m", "greenback", "--loop", loop, "script.py"]
    with Terminal(*arguments, cwd=tmp_path, env=environment) as terminal:
        assert "ensure_portal" not in terminal.expect(PDB)
        play(terminal, ("await get(1)", "1"), ("p await get(2)", "2"))
        terminal.enter("await forever()", "waiting\n")
        terminal.interrupt()
        assert terminal.expect(PDB) == "*** KeyboardInterrupt\n"
        play(terminal, ("await_(get(3))", "3"))
        assert_ends(terminal, "end\n")


@pytest.mark.skipif(
    sys.version_info < (3, 15), reason="pdb has had its own line editor since 3.15"
)
def test_own_line_editor_of_pdb(start, environment):
    environment |= {"TERM": "xterm"}
    environment.pop("NO_COLOR")
    terminal = start(SYNC_PROGRAM, "asyncio")
    terminal.type("await get('one')\n")
    terminal.expect("\n'one'\n")
    terminal.expect(PDB)
    terminal.type("x = await get(number)\n")
    terminal.expect(PDB)
    terminal.type("p x + 100\n")
    terminal.expect("\n103\n")
    terminal.type("await forever()\n")
    terminal.expect("waiting\n")
    terminal.interrupt()
    terminal.expect("*** KeyboardInterrupt\n")
    terminal.type("c\n")
    terminal.expect("[8]\n")
