"""``%load_ext greenback`` in real kernels and in the terminal's IPython.

One kernel for each kind of loop serves all tests of this file; a test leaves it
as it found it. In cells, ``when_waiting(function)`` calls ``function`` as soon
as the cell waits: how tests interrupt a cell without guessing a time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import greenback

TIMEOUT = 40  # seconds, for what hangs
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

for needed in ("IPython", "ipykernel", "jupyter_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import ipykernel  # noqa: E402
from jupyter_client import KernelManager  # noqa: E402
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager  # noqa: E402

needs_trio = pytest.mark.skipif(
    importlib.util.find_spec("trio") is None, reason="trio is not installed"
)

PRELUDE = """
import asyncio, contextvars, os, signal, sys
import greenback
from greenback import await_

def when_waiting(function, *args):
    asyncio.get_running_loop().call_soon(function, *args)

async def forever():
    await asyncio.get_running_loop().create_future()

async def give(value):
    await asyncio.sleep(0)
    return value

async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)
"""


# ------------------------------------------------------------------ kernels


class OwnKernelSpec(KernelSpecManager):
    """Knows this interpreter's kernel alone, whatever is installed."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        )


class Outcome:
    """What came of a cell: its reply and what it showed."""

    def __init__(self):
        self.text = ""  # stdout and stderr
        self.results = []  # plain text of what was displayed
        self.data = []  # MIME types of the same
        self.traceback = ""

    @property
    def result(self):
        assert self.reply["status"] == "ok", self.traceback
        return self.results[-1] if self.results else None

    @property
    def error(self):
        return self.reply.get("ename")


class Kernel:
    def __init__(self, folder, config):
        (folder / "profile_default").mkdir()
        (folder / "profile_default" / "ipython_kernel_config.py").write_text(config)
        self.log = folder / "kernel.log"
        self.manager = KernelManager(
            kernel_spec_manager=OwnKernelSpec(),
            connection_file=str(folder / "connection.json"),
        )
        variables = {
            **os.environ,
            "IPYTHONDIR": str(folder),
            "JUPYTER_RUNTIME_DIR": str(folder),
        }
        with self.log.open("w") as log:
            self.manager.start_kernel(env=variables, stdout=log, stderr=log)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=TIMEOUT)

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def start(self, code, **options):
        return self.client.execute(textwrap.dedent(code), **options)

    def messages(self, request):
        """What the kernel shows for a request, until it has dealt with it."""
        while True:
            message = self.client.get_iopub_msg(timeout=TIMEOUT)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            yield kind, content

    def finish(self, request):
        outcome = Outcome()
        for kind, content in self.messages(request):
            if kind == "stream":
                outcome.text += content["text"]
            elif kind in ("execute_result", "display_data"):
                outcome.data += content["data"]
                outcome.results.append(content["data"]["text/plain"])
            elif kind == "error":
                outcome.traceback = ESCAPES.sub("", "\n".join(content["traceback"]))
        while True:
            message = self.client.get_shell_msg(timeout=TIMEOUT)
            if message["parent_header"].get("msg_id") == request:
                outcome.reply = message["content"]
                return outcome

    def run(self, code, **options):
        return self.finish(self.start(code, **options))

    def wait_for(self, request, line):
        """Wait until the cell has printed a line; its end may come in a message of its own."""
        shown, text = "", line + "\n"
        for kind, content in self.messages(request):
            if kind == "stream":
                shown += content["text"]
            if text in shown:
                return
        raise AssertionError(f"the cell has ended: {shown}")

    def send(self, channel, kind, content, **header):
        message = self.client.session.msg(kind, content)
        message["header"].update(header)
        getattr(self.client, f"{channel}_channel").send(message)
        return message["header"]["msg_id"]

    def control(self, kind, content):
        """Send a request on the control channel, give the reply."""
        request = self.send("control", kind, content)
        while True:
            message = self.client.get_control_msg(timeout=TIMEOUT)
            if message["parent_header"].get("msg_id") == request:
                return message["content"]

    def interrupt(self, code, how="signal"):
        """Interrupt a cell when it prints "ready"."""
        request = self.start(code)
        self.wait_for(request, "ready")
        if how == "signal":
            self.manager.interrupt_kernel()
        else:
            self.control("interrupt_request", {})
        return self.finish(request)


UVLOOP_CONFIG = """
import asyncio, uvloop, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
"""


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def shared_kernel(request, tmp_path_factory):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    kernel = Kernel(
        tmp_path_factory.mktemp("kernel"),
        UVLOOP_CONFIG if request.param == "uvloop" else "",
    )
    kernel.loop_name = request.param
    try:
        assert kernel.run(PRELUDE).reply["status"] == "ok"
        assert kernel.run("greenback.engine").result == repr(greenback.engine)
        assert kernel.run("%load_ext greenback").text == ""
        yield kernel
        counters = kernel.run("greenback._core.engine_counters().get('overlaps', 0)")
        assert counters.result == "0"
    finally:
        kernel.stop()
    assert not re.search("never awaited|never retrieved|Fatal", kernel.log.read_text())


@pytest.fixture
def kernel(shared_kernel):
    yield shared_kernel
    assert shared_kernel.run("await_(give(1))").result == "1"


def test_await_in_plain_cell(kernel):
    """Sync code in a cell awaits, below C code and functions, with a result."""
    outcome = kernel.run("sum(map(lambda n: await_(give(n)), range(5)))")
    assert outcome.result == "10"


def test_the_loop_is_the_kernels(kernel):
    """Cells run on the kernel's own loop."""
    loop = kernel.run("type(asyncio.get_running_loop()).__module__").result
    assert loop.strip("'").partition(".")[0] == kernel.loop_name


def test_await_in_module(kernel, tmp_path):
    """Library code that a cell calls awaits."""
    (tmp_path / "sync_library.py").write_text(
        "import greenback\ndef call(aw): return greenback.await_(aw)\n"
    )
    kernel.run(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert kernel.run("import sync_library; sync_library.call(give(3))").result == "3"
    kernel.run("del sys.path[0]")


def test_top_level_await(kernel):
    """Cells with `await` work as before, and call await_, too."""
    assert kernel.run("await give(await_(give(4)))").result == "4"
    outcome = kernel.run(
        """
        async with asyncio.timeout(None):
            values = [await_(give(n)) async for n in (await give(n) for n in [0, 1])]
        values
        """
    )
    assert outcome.result == "[0, 1]"


def test_code_before_the_wait_and_after(kernel):
    """A cell's output, and its order, do not change for a wait."""
    outcome = kernel.run(
        "print(1)\nprint(await_(give(2)))\ndisplay(3)\nawait_(give(4))"
    )
    assert outcome.text == "1\n2\n"
    assert outcome.results == ["3", "4"]


def test_rich_output(kernel):
    """Objects are displayed as they are, while and after the cell waits."""
    outcome = kernel.run(
        """
        from IPython.display import HTML, display
        when_waiting(display, HTML("<i>1</i>"))
        await_(turns(3))
        HTML("<b>2</b>")
        """
    )
    assert outcome.data.count("text/html") == 2


def test_background_task(kernel):
    """Background tasks go on while cells wait, and between cells."""
    kernel.run(
        """
        count = 0
        async def background():
            global count
            while True:
                count += 1
                await asyncio.sleep(0)
        task = asyncio.ensure_future(background())
        await_(turns(10))
        """
    )
    during = int(kernel.run("before = count; await_(turns(10)); count - before").result)
    assert during >= 9
    # The kernel's loop turns at least once from one cell to the next.
    kernel.run("after = count")
    assert kernel.run("count > after").result == "True"
    assert kernel.run("task.cancel(); await_(asyncio.wait([task])); task.cancelled()")
    assert kernel.run("task.cancelled()").result == "True"


def test_nested_cells(kernel):
    """get_ipython().run_cell() works in a cell, whatever it contains."""
    outcome = kernel.run(
        """
        ip = get_ipython()
        for code in ("first = await_(give(1))", "second = await give(2)",
                     "ip.run_cell('third = await give(await_(give(3)))')"):
            assert ip.run_cell(code).success
        first, second, third
        """
    )
    assert outcome.result == "(1, 2, 3)"


def test_run_cell_async(kernel):
    """A task that runs a cell gets a portal as well."""
    outcome = kernel.run(
        """
        ip = get_ipython()
        code = "other = await_(give(5))"
        await asyncio.create_task(ip.run_cell_async(code, transformed_cell=code))
        other
        """
    )
    assert outcome.result == "5"


def test_request_in_task(kernel):
    """A request that a cell's own code makes of the kernel is a cell, too."""
    outcome = kernel.run(
        """
        request = get_ipython().kernel.do_execute("inner = await_(give(6))", True)
        reply = await_(asyncio.ensure_future(request))
        reply["status"], inner
        """
    )
    assert outcome.result == "('ok', 6)"


def test_context_variables(kernel):
    """What a cell sets is there in the next, a Token can be given back."""
    kernel.run("v = contextvars.ContextVar('v'); token = v.set(1)")
    assert kernel.run("await give(v.get())").result == "1"
    kernel.run("await give(1); inner = v.set(2)")
    assert kernel.run("v.get(), await_(give(v.get()))").result == "(2, 2)"
    kernel.run("v.reset(inner)")
    assert kernel.run("v.get()").result == "1"
    kernel.run("v.reset(token)")
    assert kernel.run("v.get('nothing')").result == "'nothing'"


def test_cancelled_task(kernel):
    """What a cell does to its task does not reach the kernel's."""
    assert kernel.run("asyncio.current_task().cancel()").result == "True"
    outcome = kernel.run("own = asyncio.current_task(); own.cancel(); await_(give(1))")
    assert outcome.error == "CancelledError"
    assert kernel.run("own.cancel(), own.done()").result == "(False, True)"


def test_timeout_in_sync_code(kernel):
    """asyncio.timeout() ends a wait in sync code."""
    outcome = kernel.run(
        """
        try:
            with greenback.async_context(asyncio.timeout(0)):
                await_(forever())
        except TimeoutError:
            print("timed out", asyncio.current_task().cancelling())
        """
    )
    assert outcome.text == "timed out 0\n"


@pytest.mark.parametrize("start", ["", "asyncio.ensure_future"])
def test_traceback(kernel, start):
    """Only the user's frames are in a traceback, wherever the error is from."""
    kernel.run(
        """
        async def fails():
            await asyncio.sleep(0)
            raise ValueError("no")
        def calls(start):
            return await_(start(fails()))
        """
    )
    outcome = kernel.run(f"calls({start or 'lambda coro: coro'})")
    assert outcome.error == "ValueError"
    frames = re.findall(r"^(?:File|Cell) .*", outcome.traceback, re.MULTILINE)
    names = [frame.rpartition("in ")[2] for frame in frames]
    assert [name.partition("(")[0] for name in names[1:]] == ["calls", "fails"]
    assert len(frames) == 3


def test_debugger(kernel):
    """%debug sees the frames of sync code that awaited, and can await."""
    kernel.run(
        """
        def divide(divisor):
            return await_(give(1)) / divisor
        """
    )
    assert kernel.run("divide(0)").error == "ZeroDivisionError"
    request = kernel.start("%debug", allow_stdin=True)
    for command in ("p 'divisor', divisor", "p 'awaited', await_(give(6))", "q"):
        kernel.client.get_stdin_msg(timeout=TIMEOUT)
        kernel.client.input(command)
    outcome = kernel.finish(request)
    assert "('divisor', 0)" in outcome.text
    assert "('awaited', 6)" in outcome.text


def test_input(kernel):
    """input() still asks the front end."""
    request = kernel.start("await_(give(input('? ')))", allow_stdin=True)
    kernel.client.get_stdin_msg(timeout=TIMEOUT)
    kernel.client.input("answer")
    assert kernel.finish(request).result == "'answer'"


@pytest.mark.parametrize(
    "code",
    [
        "%time await_(note(3))",
        "%%time\nawait_(note(3))",
        "%timeit -n 2 -r 2 await_(note(3))",
        "%%timeit -n 2 -r 2 value = 3\nawait_(note(value))",
        "%prun -q await_(note(3))",
        "%%capture output\nawait_(note(3))",
    ],
)
def test_magic(kernel, code):
    """Magics that run code run it in the cell's task."""
    kernel.run(
        """
        noted = []
        async def note(value):
            await asyncio.sleep(0)
            noted.append(value)
        """
    )
    outcome = kernel.run(code)
    assert outcome.reply["status"] == "ok"
    assert not outcome.traceback
    assert kernel.run("set(noted)").result == "{3}"


def test_run_magic(kernel, tmp_path):
    """A script that %run runs awaits."""
    script = tmp_path / "script.py"
    script.write_text("from greenback import await_\nvalue = await_(aw)\n")
    kernel.run("aw = give(7)")
    assert kernel.run(f"%run -i {script}\nvalue").result == "7"


def test_autoawait_off(kernel):
    """Without IPython's autoawait, `await` is an error and await_ still works."""
    kernel.run("%autoawait off")
    try:
        assert kernel.run("await_(give(8))").result == "8"
        assert kernel.run("await give(8)").error == "SyntaxError"
    finally:
        kernel.run("%autoawait on")
    assert kernel.run("await give(8)").result == "8"


@needs_trio
def test_trio(kernel):
    """With `%autoawait trio`, each cell is a Trio run, and awaits there."""
    kernel.run("import trio\nv = contextvars.ContextVar('v')\n%autoawait trio")
    try:
        cell = "v.set(1)\nawait_(trio.sleep(0))\ngreenback.has_portal()"
        assert kernel.run(cell).result == "True"
        assert kernel.run("v.get()").result == "1"
        assert "on trio" in kernel.run("await trio.sleep(0)\n%greenback").text
        outcome = kernel.interrupt(
            """
            import threading
            token = trio.lowlevel.current_trio_token()
            threading.Thread(
                target=trio.from_thread.run_sync, args=(print, "ready"),
                kwargs={"trio_token": token}
            ).start()
            await_(trio.sleep_forever())
            """
        )
        assert outcome.error == "KeyboardInterrupt"
    finally:
        kernel.run("%autoawait asyncio")


WAITS = {
    "sync": "await_(forever())",
    "deep": "list(map(await_, [forever()]))",
    "await": "await forever()",
    "task": "await_(asyncio.ensure_future(forever()))",
    "nested": "%greenback nested\nasyncio.run(forever())",
    "in-cell": "get_ipython().run_cell('await forever()').raise_error()",
}


@pytest.mark.parametrize("how", ["signal", "message"])
@pytest.mark.parametrize("wait", WAITS)
def test_interrupt(kernel, wait, how):
    """Interrupting the kernel raises KeyboardInterrupt where a cell waits."""
    outcome = kernel.interrupt(f"when_waiting(print, 'ready')\n{WAITS[wait]}", how)
    assert outcome.error == "KeyboardInterrupt"
    kernel.run("%greenback nested off")


def test_interrupt_running_code(kernel):
    """Code that does not wait is interrupted as always, in any kind of cell."""
    busy = "print('ready', flush=True)\nwhile True: pass"
    assert kernel.interrupt(busy).error == "KeyboardInterrupt"
    assert kernel.interrupt("await give(1)\n" + busy).error == "KeyboardInterrupt"
    assert kernel.interrupt("await_(give(1))\n" + busy).error == "KeyboardInterrupt"


def test_interrupt_is_caught(kernel):
    """A cell can catch the KeyboardInterrupt, at the await_, and go on."""
    outcome = kernel.interrupt(
        """
        when_waiting(print, "ready")
        try:
            await_(forever())
        except KeyboardInterrupt:
            print(asyncio.current_task().cancelling(), await_(give("goes on")))
        """
    )
    assert outcome.text == "0 goes on\n"
    assert outcome.reply["status"] == "ok"


def test_interrupt_ends_what_is_awaited(kernel):
    """The tasks that the cell waits for end, other tasks do not."""
    outcome = kernel.interrupt(
        """
        ended = []
        async def child(name):
            try:
                await forever()
            except asyncio.CancelledError:
                ended.append(name)
                raise
        async def group():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child("a"))
                tasks.create_task(child("b"))
                await tasks.create_task(turns(3))
                when_waiting(print, "ready")
        other = asyncio.ensure_future(child("other"))
        try:
            await_(group())
        finally:
            print(sorted(ended), other.done())
        """
    )
    assert outcome.error == "KeyboardInterrupt"
    assert outcome.text == "['a', 'b'] False\n"
    kernel.run("other.cancel()")


def test_signal_handler_of_the_cell(kernel):
    """While code runs, SIGINT has Python's own handler; the cell may set one."""
    code = "signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert kernel.run(code).result == "True"
    assert kernel.run(f"await_(give(1))\n{code}").result == "True"
    outcome = kernel.interrupt(
        """
        done = asyncio.get_running_loop().create_future()
        def handler(*args):
            done.get_loop().call_soon_threadsafe(done.set_result, "handled")
        signal.signal(signal.SIGINT, handler)
        when_waiting(print, "ready")
        await_(done)
        """
    )
    assert outcome.result == "'handled'"


def make_comm(kernel, callback):
    kernel.run(
        f"""
        import comm
        def target(channel, message):
            channel.on_msg(callback)
        {textwrap.indent(textwrap.dedent(callback), " " * 8).strip()}
        comm.get_comm_manager().register_target("greenback", target)
        """
    )
    request = kernel.send(
        "shell",
        "comm_open",
        {"comm_id": "c", "target_name": "greenback", "data": {}},
    )
    list(kernel.messages(request))


def send_comm(kernel, data):
    return kernel.send("shell", "comm_msg", {"comm_id": "c", "data": data})


def close_comm(kernel):
    list(
        kernel.messages(
            kernel.send("shell", "comm_close", {"comm_id": "c", "data": {}})
        )
    )


def test_widget_callback(kernel):
    """A callback of a widget's message can await."""
    make_comm(
        kernel,
        """
        def callback(message):
            print(await_(give(message["content"]["data"])))
        """,
    )
    shown = list(kernel.messages(send_comm(kernel, {"a": 1})))
    assert ("stream", {"name": "stdout", "text": "{'a': 1}\n"}) in shown
    close_comm(kernel)


def test_interrupted_widget_callback(kernel):
    """An interrupt while a callback waits ends the callback, not the kernel."""
    make_comm(
        kernel,
        """
        def callback(message):
            when_waiting(print, "ready")
            try:
                await_(forever())
            except KeyboardInterrupt:
                print("interrupted")
                raise
        """,
    )
    request = send_comm(kernel, {})
    kernel.wait_for(request, "ready")
    kernel.manager.interrupt_kernel()
    text = "".join(
        content["text"]
        for kind, content in kernel.messages(request)
        if kind == "stream"
    )
    assert "interrupted\n" in text
    close_comm(kernel)


@pytest.mark.skipif(
    ipykernel.version_info[0] < 7, reason="subshells came with ipykernel 7"
)
def test_subshell(kernel):
    """A cell in a subshell awaits on the subshell's loop while another waits."""
    subshell = kernel.control("create_subshell_request", {})["subshell_id"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        main = kernel.start(
            f"""
            import threading
            address = {server.getsockname()!r}
            reader, writer = await_(asyncio.open_connection(*address))
            done = await_(reader.read())
            writer.close()
            """
        )
        connection, _ = server.accept()
    # IPython's display hook is lost if one cell ends in a thread while another begins
    # or ends in the main one: the subshell's cell is over before the main one goes on.
    with connection:
        code = "threading.current_thread() is threading.main_thread(), await_(give(3))"
        request = kernel.send(
            "shell",
            "execute_request",
            {"code": code, "silent": False},
            subshell_id=subshell,
        )
        assert kernel.finish(request).result == "(False, 3)"
        connection.sendall(b"done")
    assert kernel.finish(main).reply["status"] == "ok"
    assert kernel.run("done").result == "b'done'"
    kernel.control("delete_subshell_request", {"subshell_id": subshell})


def test_nested_runs(kernel):
    """%greenback nested makes asyncio.run() work in cells, until it is off."""
    assert kernel.run("main = give(1); asyncio.run(main)").error == "RuntimeError"
    kernel.run("main.close()\n%greenback nested")
    assert kernel.run("asyncio.run(give(1))").result == "1"
    assert "asyncio.run() in cells: works" in kernel.run("%greenback status").text
    kernel.run("%greenback nested\n%greenback nested off")
    assert kernel.run("main = give(1); asyncio.run(main)").error == "RuntimeError"
    assert "asyncio.run() in cells: off" in kernel.run("%greenback status").text
    kernel.run("main.close()\n%greenback nested off")


def test_status(kernel):
    """%greenback status, and %greenback alone, tell engine and loop."""
    text = kernel.run("%greenback status").text
    assert f"{greenback.__version__}, {greenback.engine} engine" in text
    assert f"await_() in cells: works, on {kernel.loop_name}" in text
    assert kernel.run("%greenback").text == text


@pytest.mark.parametrize("line", ["nonsense", "nested of", "status 1", "off"])
def test_bad_magic(kernel, line):
    """A word that %greenback doesn't know is a UsageError that tells the others."""
    outcome = kernel.run(f"%greenback {line}")
    assert outcome.error == "UsageError"
    for word in (repr(line), "nested", "nested off", "status"):
        assert word in outcome.reply["evalue"]


def test_load_twice(kernel):
    """Loading it again changes nothing; nor does reloading."""
    assert "already loaded" in kernel.run("%load_ext greenback").text
    kernel.run("greenback.load_ipython_extension(get_ipython())")
    kernel.run("%reload_ext greenback")
    kernel.run("%unload_ext greenback")
    assert kernel.run("await_(give(1))").error == "RuntimeError"
    kernel.run("%load_ext greenback")


def test_unload(kernel):
    """%unload_ext greenback undoes all, from the next cell on."""
    kernel.run("native_run = asyncio.run\n%greenback nested")
    assert kernel.run("asyncio.run is native_run").result == "False"
    state = """
        ip = get_ipython()
        [vars(ip).keys() & {"run_cell", "run_cell_async", "should_run_async"},
         "do_execute" in vars(ip.kernel), asyncio.run is native_run,
         ip.kernel.shell_handlers["comm_msg"].__self__ is ip.kernel.comm_manager,
         "greenback" in ip.magics_manager.magics["line"]]
        """
    assert kernel.run("%unload_ext greenback\nawait_(give(1))").result == "1"
    try:
        result = kernel.run(state).result
        assert result == "[set(), False, True, True, False]"
        outcome = kernel.run("await_(give(1))")
        assert "must create a greenback portal" in outcome.reply["evalue"]
        assert kernel.run("await give(2)").result == "2"
        assert kernel.run("%greenback").error == "UsageError"
    finally:
        outcome = kernel.run("%load_ext greenback\n%greenback status")
    assert "works from the next cell on" in outcome.text


def test_unload_below_others(kernel):
    """What someone else has put on top stays, and ours below does nothing."""
    kernel.run(
        """
        shell_kernel = get_ipython().kernel
        async def on_top(*args, below=shell_kernel.do_execute, **kwds):
            return await below(*args, **kwds)
        shell_kernel.do_execute = on_top
        """
    )
    kernel.run("%unload_ext greenback")
    assert kernel.run("shell_kernel.do_execute is on_top").result == "True"
    assert kernel.run("await give(1)").result == "1"
    assert kernel.run("await_(give(1))").error == "RuntimeError"
    kernel.run("del shell_kernel.do_execute")
    kernel.run("%load_ext greenback")


# ------------------------------------------------------------------ terminal


@pytest.fixture(scope="module")
def ipython(tmp_path_factory):
    """Runs IPython with what a user types; gives all that it prints."""
    folder = tmp_path_factory.mktemp("ipython")
    variables = {**os.environ, "IPYTHONDIR": str(folder)}
    options = ["--no-banner", "--colors=NoColor", "--HistoryManager.enabled=False"]

    def run(*arguments, typed=""):
        done = subprocess.run(
            [sys.executable, "-m", "IPython", *options, *arguments],
            input=textwrap.dedent(typed),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=folder,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run.variables = variables
    run.folder = folder
    run.options = options
    (folder / "prelude.py").write_text(PRELUDE)
    return run


def answers(output):
    """What the cells gave."""
    return re.findall(r"Out\[\d+\]: (.*)", output)


def session(ipython, typed):
    """What the cells give that are typed after the prelude."""
    output = ipython(
        "--simple-prompt",
        typed=f"from prelude import *\n%load_ext greenback\n{textwrap.dedent(typed)}",
    )
    assert "Traceback" not in output, output
    return answers(output)


def test_terminal(ipython):
    """Plain cells, cells with `await` and magics await in the terminal."""
    result = session(
        ipython,
        """
        sum(map(lambda n: await_(give(n)), range(5)))
        await give(await_(give(2)))
        get_ipython().run_cell("value = await give(3)").success and value
        %time await_(give(4))
        %autoawait off
        await_(give(5))
        %autoawait on
        asyncio.current_task().cancel()
        first = asyncio.get_running_loop()
        (await give(first)) is asyncio.get_running_loop()
        """,
    )
    assert result == ["10", "2", "3", "4", "5", "True", "True"]


def test_terminal_context_variables(ipython):
    """Context variables stay set from cell to cell, and when it is unloaded."""
    result = session(
        ipython,
        """
        v = contextvars.ContextVar("v"); token = v.set(1); inner = v.set(2)
        await give(v.get())
        v.reset(inner); v.get()
        await give(0); v.set(3);
        v.get()
        %unload_ext greenback
        v.get()
        """,
    )
    assert result == ["2", "1", "3", "3"]


@needs_trio
def test_terminal_trio(ipython):
    """With `%autoawait trio`, plain cells await there, too."""
    result = session(
        ipython,
        """
        import trio; v = contextvars.ContextVar("v")
        %autoawait trio
        v.set(1); await_(trio.sleep(0)); greenback.has_portal()
        await trio.sleep(0); v.get()
        %autoawait asyncio
        v.get(), await_(give(2))
        """,
    )
    assert result == ["True", "1", "(1, 2)"]


def test_terminal_nested(ipython):
    """asyncio.run() in a cell shares the loop with the other cells' tasks."""
    result = session(
        ipython,
        """
        %greenback nested
        task = asyncio.ensure_future(give(1))
        asyncio.run(turns(5)); task.result()
        """,
    )
    assert result == ["1"]


def test_terminal_thread(ipython):
    """A cell that another thread runs stays there, as without the extension."""
    result = session(
        ipython,
        """
        import threading
        code = "where = threading.current_thread()"
        thread = threading.Thread(target=get_ipython().run_cell, args=(code,))
        thread.start(); thread.join()
        where is thread
        """,
    )
    assert result == ["True"]


def test_terminal_interrupt(ipython):
    """SIGINT raises KeyboardInterrupt where the cell waits; the next one works."""
    output = ipython(
        "--simple-prompt",
        typed="""
        from prelude import *
        %load_ext greenback
        def interrupt(): when_waiting(os.kill, os.getpid(), signal.SIGINT)
        interrupt(); await_(forever())
        interrupt(); await forever()
        while True: os.kill(os.getpid(), signal.SIGINT)

        await_(give(1))
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
        len(asyncio.all_tasks())
        """,
    )
    assert output.count("\nKeyboardInterrupt") == 2 * 3
    assert answers(output)[-3:] == ["1", "True", "2"]


def test_terminal_unload(ipython):
    """Without the extension, cells are what they were."""
    output = ipython(
        "--simple-prompt",
        typed="""
        from prelude import *
        %load_ext greenback
        %unload_ext greenback
        vars(get_ipython()).keys() & {"run_cell", "run_cell_async", "should_run_async"}
        greenback.has_portal()
        asyncio.run(give(1))
        await give(2)
        """,
    )
    assert answers(output) == ["set()", "False", "1", "2"]


def test_command_line(ipython):
    """`ipython --ext greenback -c` runs code that awaits."""
    output = ipython(
        "--ext=greenback", "-c", "from prelude import *; print(await_(give(9)))"
    )
    assert output == "9\n"


def test_embedded_in_portal(ipython, tmp_path):
    """An embedded shell in a task with a portal awaits on the task's loop."""
    script = tmp_path / "embeds.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, greenback, IPython
            from traitlets.config import Config
            from prelude import *
            config = Config()
            config.TerminalInteractiveShell.simple_prompt = True
            config.HistoryManager.enabled = False

            async def main():
                await greenback.ensure_portal()
                loop = asyncio.get_running_loop()
                IPython.embed(config=config, colors="NoColor", banner1="")

            asyncio.run(main())
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        input="%load_ext greenback\nawait_(give(loop)) is loop\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            **ipython.variables,
            "PYTHONPATH": os.pathsep.join(
                [str(ipython.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        },
        text=True,
        timeout=TIMEOUT,
    )
    assert answers(done.stdout) == ["True"], done.stdout


# ------------------------------------------------------------------ elsewhere


@pytest.mark.parametrize("thing", [None, object(), "shell", greenback])
@pytest.mark.parametrize(
    "function",
    [greenback.load_ipython_extension, greenback.unload_ipython_extension],
)
def test_not_in_ipython(function, thing):
    """Without an IPython shell the functions say what to do."""
    with pytest.raises(TypeError, match=r"IPython shell.*%load_ext greenback"):
        function(thing)


def test_import_is_light():
    """Importing greenback imports neither IPython nor the extension."""
    code = (
        "import sys, greenback\n"
        "assert not {'IPython', 'greenback._ipython'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)


NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


def test_example(kernel):
    """The cells of examples/notebook.ipynb run; no outputs are kept in the file."""
    import json

    notebook = json.loads(NOTEBOOK.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            outcome = kernel.run("".join(cell["source"]))
            assert outcome.reply["status"] == "ok", outcome.traceback
    kernel.run("%load_ext greenback")
    kernel.run("%greenback nested off")
