"""Frames of compiled extensions: C++ with and without pybind11, Cython."""

from __future__ import annotations

from typing import Any

from frames import Call, frame_kind
from native import cpp_frames, cython_frames, pybind_frames, thread_state


def objects_alive() -> int:
    """C++ objects that were not destroyed yet."""
    alive = cpp_frames.alive() if cpp_frames is not None else 0
    if pybind_frames is not None:
        alive += pybind_frames.alive()
    return int(alive)


# Where C++ code notes per thread what it is in the middle of (pybind11: what keeps arguments
# alive; the C++ runtime: what a catch block handles), such calls have to end in the reverse
# order, which no engine knows of. Hence "one task".


async def handling_twin(call: Any, times: int) -> None:
    for _ in range(times):
        try:
            raise LookupError("in Cython")
        except LookupError:
            await call()


if cpp_frames is not None:

    @frame_kind("C++ objects")
    def through_guarded(call: Call, times: int) -> None:
        for _ in range(times):
            cpp_frames.guarded(call)

    @frame_kind("C++ throw and catch")
    def through_throwing(call: Call, times: int) -> None:
        for _ in range(times):
            cpp_frames.throwing(call)

    @frame_kind("C++ catch handler", needs="one task")
    def through_calling_in_handler(call: Call, times: int) -> None:
        for _ in range(times):
            cpp_frames.calling_in_handler(call)


if pybind_frames is not None:

    @frame_kind("pybind11 virtual method", needs="one task")
    def through_virtual(call: Call, times: int) -> None:
        class Visitor(pybind_frames.Visitor):  # type: ignore[misc, name-defined]
            def visit(self, number: int) -> int:
                return call() * 0

        pybind_frames.visit_all(Visitor(), times)

    @frame_kind("pybind11 std::function", needs="one task")
    def through_function(call: Call, times: int) -> None:
        pybind_frames.transform(lambda number: call() * 0, times)


if cython_frames is not None:

    @frame_kind("Cython cdef functions")
    def through_cdef(call: Call, times: int) -> None:
        for _ in range(times):
            cython_frames.plain(call)

    @frame_kind("Cython except block", handling_twin)
    def through_cython_handler(call: Call, times: int) -> None:
        for _ in range(times):
            cython_frames.handling(call)

    @frame_kind("Cython __getitem__")
    def through_cython_item(call: Call, times: int) -> None:
        for _ in range(times):
            cython_frames.indexed(call)

    @frame_kind("Cython generator")
    def through_cython_generator(call: Call, times: int) -> None:
        list(cython_frames.generator(call, times))

    @frame_kind("Cython finally")
    def through_cython_finally(call: Call, times: int) -> None:
        for _ in range(times):
            cython_frames.finishing(call)


if thread_state is not None:

    @frame_kind("big C frames")
    def through_big_frames(call: Call, times: int) -> None:
        for number in range(times):
            thread_state.call_with_big_frame(call, 1 + 2 * number)
