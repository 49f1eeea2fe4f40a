"""What stackscope has to know to see through a portal."""

from __future__ import annotations

from typing import Any

from . import _core


def install_glue() -> None:
    """Teach stackscope to follow a task that is suspended in ``await_()``.

    stackscope calls this once, when it first sees that both are imported.
    """
    from stackscope import StackSlice, unwrap_stackitem

    def unwrap_with_portal(coroutine: Any) -> Any:
        awaited = _core.innermost_awaited(coroutine)
        if awaited is None:
            if coroutine.cr_running:
                return StackSlice(outer=coroutine.cr_frame)
            return (coroutine.cr_frame, coroutine.cr_await)
        # The frames are on the stack of the step; between that and the one
        # which waits there may be greenlets that were started in the step.
        stacks: list[Any] = []
        frame, greenlet, home = _core.waiting_stack(coroutine)
        while greenlet not in (None, home) and greenlet.parent is not None:
            stacks.insert(0, greenlet)
            greenlet = greenlet.parent
        if frame is not None:
            stacks.insert(0, StackSlice(inner=frame))
        return (*stacks, awaited)

    unwrap_stackitem.register(_core.Coroutine, unwrap_with_portal)
    unwrap_stackitem.register(_core.StandIn, unwrap_with_portal)
