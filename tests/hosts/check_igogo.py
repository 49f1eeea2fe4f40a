# /// script
# dependencies = ["igogo", "ipykernel", "ipywidgets", "jupyter_client"]
# ///
"""igogo: cells of a notebook that run side by side, in a real kernel."""

from __future__ import annotations

import queue
import sys
from importlib.metadata import version

from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

TIMEOUT = 60  # seconds, for what hangs

CELLS = """
import igogo, asyncio
%load_ext igogo
log = []

@igogo.job
def job(name):
    for number in range(3):
        log.append((name, number))
        igogo.yielder()
    igogo.sleep(0)
    print("printed by", name)
    return name

@igogo.job
def sleeper():
    log.append("sleeps")
    try:
        igogo.sleep(1e6)
    finally:
        log.append("ends")

@igogo.job
def failing():
    igogo.sleep(0)
    raise LookupError("expected")
# %%
tasks = [job(name)["task"] for name in "abc"]
assert log == []
# %%
assert await asyncio.gather(*tasks) == ["a", "b", "c"]
assert log == [(name, number) for number in range(3) for name in "abc"], log
# %%
task = sleeper()["task"]
while log[-1] != "sleeps":
    await asyncio.sleep(0)
assert igogo.get_running_igogo_cells()
igogo.stop_all()
assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
assert log[-1] == "ends", log
# %%
await failing()["task"]
# %%
%%igogo
for number in range(2):
    log.append(("magic", number))
    igogo.sleep(0)
# %%
while log[-1] != ("magic", 1):
    await asyncio.sleep(0)
"""


class OwnKernelSpec(KernelSpecManager):
    """Knows this interpreter's kernel alone, whatever is installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        )


manager = KernelManager(kernel_spec_manager=OwnKernelSpec())
manager.start_kernel()
client = manager.client()
client.start_channels()
shown = ""


def run_cell(cell: str) -> None:
    """Run it; note what jobs of earlier cells show meanwhile, too."""
    global shown
    ours = client.execute(cell)
    idle = False
    while not idle:
        message = client.get_iopub_msg(timeout=TIMEOUT)
        content = message["content"]
        shown += content.get("text", "")
        shown += content.get("data", {}).get("text/plain", "")
        shown += "\n".join(content.get("traceback", ()))
        idle = content.get("execution_state") == "idle"
        idle = idle and message["parent_header"]["msg_id"] == ours
    reply = client.get_shell_msg(timeout=TIMEOUT)
    assert reply["content"]["status"] == "ok", f"{cell}\n{shown}"


try:
    client.wait_for_ready(timeout=TIMEOUT)
    for cell in CELLS.split("# %%\n"):
        try:
            run_cell(cell)
        except queue.Empty:
            raise TimeoutError(f"{cell}\n{shown}") from None
    for text in ("printed by a", "printed by b", "printed by c", "LookupError"):
        assert text in shown, f"{shown}\nlacks {text}"
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
print(f"igogo {version('igogo')}: three jobs side by side, one stopped, one fails")
