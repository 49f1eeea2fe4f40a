"""C functions of the standard library that call back."""

from __future__ import annotations

import bisect
import codecs
import contextlib
import copy
import csv
import ctypes
import functools
import heapq
import io
import itertools
import json
import operator
import pickle
import re
import sqlite3
import xml.parsers.expat
from typing import Any

from frames import Call, each_swallowed, frame_kind


@frame_kind("map")
def through_map(call: Call, times: int) -> None:
    list(map(call, range(times)))


@frame_kind("nested map")
def through_nested_map(call: Call, times: int) -> None:
    stream: Any = map(call, range(times))
    for _ in range(8):
        stream = map(operator.index, stream)
    list(stream)


@frame_kind("filter")
def through_filter(call: Call, times: int) -> None:
    list(filter(call, range(times)))


@frame_kind("sorted key")
def through_sorted(call: Call, times: int) -> None:
    sorted(range(times), key=call)


@frame_kind("list.sort")
def through_list_sort(call: Call, times: int) -> None:
    numbers = list(range(times))
    numbers.sort(key=call)


@frame_kind("min key")
def through_min(call: Call, times: int) -> None:
    min(range(times), key=call)


@frame_kind("max key")
def through_max(call: Call, times: int) -> None:
    max(*range(times), 1, key=counted(call, times))


def counted(call: Call, times: int) -> Call:
    """Calls only so many times, for C code that calls more often."""
    left = times

    def limited(*args: Any) -> int:
        nonlocal left
        left -= 1
        return call() if left >= 0 else 0

    return limited


@frame_kind("functools.reduce")
def through_reduce(call: Call, times: int) -> None:
    functools.reduce(call, range(times), 0)


@frame_kind("functools.lru_cache")
def through_lru_cache(call: Call, times: int) -> None:
    cached = functools.lru_cache(maxsize=4)(call)
    for number in range(times):
        cached(number)


@frame_kind("functools.partial")
def through_partial(call: Call, times: int) -> None:
    bound = functools.partial(functools.partial(call, 1), 2, name=3)
    for _ in range(times):
        bound()


@frame_kind("functools.singledispatch")
def through_singledispatch(call: Call, times: int) -> None:
    def dispatched(value: object) -> int:
        return call()

    generic = functools.singledispatch(dispatched)
    for _ in range(times):
        generic(1)


@frame_kind("functools.cached_property")
def through_cached_property(call: Call, times: int) -> None:
    class Lazy:
        @functools.cached_property
        def value(self) -> int:
            return call()

    for _ in range(times):
        assert isinstance(Lazy().value, int)


@frame_kind("functools.cmp_to_key")
def through_cmp_to_key(call: Call, times: int) -> None:
    for _ in range(times):
        sorted([2, 1], key=functools.cmp_to_key(lambda a, b: call() * 0))


@frame_kind("json.dumps default")
def through_json_dumps(call: Call, times: int) -> None:
    json.dumps([{"a": object()}] * times, default=call)


@frame_kind("json.loads object_hook")
def through_json_loads(call: Call, times: int) -> None:
    json.loads("[" + ",".join(["{}"] * times) + "]", object_hook=call)


@frame_kind("re.sub")
def through_re_sub(call: Call, times: int) -> None:
    re.sub("a+", lambda match: str(call()), "ab" * times)


@frame_kind("itertools.starmap")
def through_starmap(call: Call, times: int) -> None:
    list(itertools.starmap(call, [(1, 2)] * times))


@frame_kind("itertools.accumulate")
def through_accumulate(call: Call, times: int) -> None:
    list(itertools.accumulate(range(times + 1), call))


@frame_kind("itertools.groupby")
def through_groupby(call: Call, times: int) -> None:
    for _, _group in itertools.groupby(range(times), call):
        pass


@frame_kind("chain of iterators")
def through_chain(call: Call, times: int) -> None:
    chained = itertools.chain.from_iterable([map(call, range(times)), ()])
    list(zip(enumerate(itertools.islice(chained, None)), itertools.count()))


@frame_kind("iter sentinel")
def through_iter(call: Call, times: int) -> None:
    for _ in itertools.islice(iter(call, object()), times):
        pass


@frame_kind("bisect key")
def through_bisect(call: Call, times: int) -> None:
    for _ in range(times):
        bisect.bisect([1], 0, key=lambda _: call() * 0)


@frame_kind("heapq")
def through_heapq(call: Call, times: int) -> None:
    class Ordered:
        def __lt__(self, other: object) -> bool:
            return call() < 0

    for _ in range(times):
        heap = [Ordered()]
        heapq.heappush(heap, Ordered())


@frame_kind("any of a generator")
def through_any(call: Call, times: int) -> None:
    any(call() < 0 for _ in range(times))


@frame_kind("sum of a generator")
def through_sum(call: Call, times: int) -> None:
    sum(call() for _ in range(times))


@frame_kind("str.join")
def through_join(call: Call, times: int) -> None:
    "".join(str(call()) for _ in range(times))


async def translate_twin(call: Any, times: int) -> None:
    for _ in range(times):
        try:
            await call()
        except LookupError:
            pass  # not in the table


@frame_kind("str.translate", translate_twin)
def through_translate(call: Call, times: int) -> None:
    class Table:
        def __getitem__(self, key: int) -> int:
            return 65 + call() % 2

    for number in range(times):
        chr(200 + number).translate(Table())


@frame_kind("codec error handler")
def through_codec(call: Call, times: int) -> None:
    def handler(error: Any) -> tuple[str, int]:
        call()
        return "", error.end

    name = call.t.world.unique("torture")  # type: ignore[attr-defined]
    codecs.register_error(name, handler)
    for _ in range(times):
        "\udc00".encode("ascii", name)


@frame_kind("csv.reader")
def through_csv(call: Call, times: int) -> None:
    list(csv.reader(f"{call()},2" for _ in range(times)))


@frame_kind("io.BufferedReader")
def through_buffered_reader(call: Call, times: int) -> None:
    class Raw(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            call()
            buffer[:1] = b"x"
            return 1

    for _ in range(times):
        with io.BufferedReader(Raw(), 1) as reader:
            reader.read(1)


@frame_kind("expat")
def through_expat(call: Call, times: int) -> None:
    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: call()
    parser.Parse("<a>" * times + "</a>" * times, True)


async def sqlite_twin(call: Any, times: int) -> None:
    for _ in range(times):
        try:
            await call()
        except BaseException:
            error = sqlite3.OperationalError("user-defined function raised exception")
        else:
            continue
        raise error


@frame_kind("sqlite3 function", sqlite_twin)
def through_sqlite(call: Call, times: int) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        connection.create_function("torture", 1, lambda _: call())
        for number in range(times):
            connection.execute("SELECT torture(?)", (number,)).fetchall()
    finally:
        connection.close()


@frame_kind("ctypes callback", each_swallowed)
def through_ctypes(call: Call, times: int) -> None:
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda _: call() * 0)
    for number in range(times):
        callback(number)


@frame_kind("ctypes qsort", each_swallowed)
def through_qsort(call: Call, times: int) -> None:
    pointer = ctypes.POINTER(ctypes.c_int)
    comparison_type = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer)
    comparison = comparison_type(lambda a, b: call() * 0)
    qsort = ctypes.CDLL(None).qsort
    qsort.restype = None
    numbers = (ctypes.c_int * 2)(2, 1)
    for _ in range(times):
        qsort(numbers, 2, ctypes.sizeof(ctypes.c_int), comparison)


@frame_kind("ctypes.pythonapi")
def through_pythonapi(call: Call, times: int) -> None:
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)
    invoke = prototype(("PyObject_CallNoArgs", ctypes.pythonapi))
    for _ in range(times):
        invoke(call)


@frame_kind("pickle")
def through_pickle(call: Call, times: int) -> None:
    class Part:
        def __reduce__(self) -> Any:
            call()
            return (int, ())

    pickle.dumps([Part() for _ in range(times)])


@frame_kind("copy.deepcopy")
def through_deepcopy(call: Call, times: int) -> None:
    class Part:
        def __deepcopy__(self, memo: object) -> Part:
            call()
            return self

    copy.deepcopy([Part() for _ in range(times)])


@frame_kind("exec")
def through_exec(call: Call, times: int) -> None:
    for _ in range(times):
        exec("class Body:\n    value = call()", {"call": call})


@frame_kind("eval")
def through_eval(call: Call, times: int) -> None:
    for _ in range(times):
        eval("[call(), *()][0]", {"call": call})


@frame_kind("ExitStack callback")
def through_exit_stack(call: Call, times: int) -> None:
    for _ in range(times):
        with contextlib.ExitStack() as stack:
            stack.callback(call)


@frame_kind("contextmanager")
def through_contextmanager(call: Call, times: int) -> None:
    @contextlib.contextmanager
    def manager() -> Any:
        yield call()

    for _ in range(times):
        with manager():
            pass
