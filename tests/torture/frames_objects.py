"""Special methods, which C code calls."""

from __future__ import annotations

import sys
import weakref
from typing import Any

from frames import Call, each, each_swallowed, frame_kind


def object_with(**methods: Any) -> Any:
    return type("Special", (), methods)()


@frame_kind("__getattr__")
def through_getattr(call: Call, times: int) -> None:
    class Proxy:
        def __getattr__(self, name: str) -> int:
            return call()

    for _ in range(times):
        assert Proxy().anything is not None


@frame_kind("__getattribute__")
def through_getattribute(call: Call, times: int) -> None:
    class Proxy:
        def __getattribute__(self, name: str) -> int:
            return call()

    for _ in range(times):
        getattr(Proxy(), "x" * 3)


@frame_kind("property")
def through_property(call: Call, times: int) -> None:
    class Owner:
        value = property(call)

    for _ in range(times):
        assert Owner().value is not None


@frame_kind("descriptor")
def through_descriptor(call: Call, times: int) -> None:
    class Descriptor:
        def __get__(self, owner: object, cls: type | None = None) -> int:
            return call()

        def __set__(self, owner: object, value: object) -> None:
            call()

    class Owner:
        value = Descriptor()

    for number in range(times):
        if number % 2:
            Owner().value = 1
        else:
            assert Owner().value is not None


@frame_kind("__setattr__")
def through_setattr(call: Call, times: int) -> None:
    class Owner:
        def __setattr__(self, name: str, value: object) -> None:
            call()

    for _ in range(times):
        Owner().anything = 1


async def set_name_twin(call: Any, times: int) -> None:
    for _ in range(times):
        try:
            await call()
        except BaseException as exc:
            if sys.version_info >= (3, 12):
                raise
            raise RuntimeError from exc


@frame_kind("__set_name__", set_name_twin)
def through_set_name(call: Call, times: int) -> None:
    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            call()

    for _ in range(times):
        type("Owner", (), {"attribute": Named()})


@frame_kind("__init_subclass__")
def through_init_subclass(call: Call, times: int) -> None:
    class Base:
        def __init_subclass__(cls) -> None:
            call()

    for _ in range(times):
        type("Derived", (Base,), {})


@frame_kind("metaclass __call__")
def through_metaclass(call: Call, times: int) -> None:
    class Meta(type):
        def __call__(cls) -> Any:
            call()
            return super().__call__()

    class Made(metaclass=Meta):
        pass

    for _ in range(times):
        Made()


@frame_kind("metaclass __prepare__")
def through_prepare(call: Call, times: int) -> None:
    class Meta(type):
        @classmethod
        def __prepare__(mcs, name: str, bases: Any) -> dict[str, object]:  # type: ignore[override]
            call()
            return {}

    for _ in range(times):

        class Made(metaclass=Meta):
            pass


@frame_kind("__init__")
def through_init(call: Call, times: int) -> None:
    class Made:
        def __init__(self) -> None:
            call()

    list(map(lambda _: Made(), range(times)))  # noqa: C417


@frame_kind("__new__")
def through_new(call: Call, times: int) -> None:
    class Made:
        def __new__(cls) -> Made:
            call()
            return super().__new__(cls)

    for _ in range(times):
        Made()


@frame_kind("__eq__ in a dict")
def through_dict_eq(call: Call, times: int) -> None:
    class Key:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            call()
            return True

    for _ in range(times):
        assert {Key(): 5}[Key()] == 5


@frame_kind("__hash__ in a set")
def through_set_hash(call: Call, times: int) -> None:
    class Key:
        def __hash__(self) -> int:
            call()
            return 1

    for _ in range(times):
        {1, 2}.add(Key())  # type: ignore[arg-type]


@frame_kind("__missing__")
def through_missing(call: Call, times: int) -> None:
    class Table(dict[int, int]):
        def __missing__(self, key: int) -> int:
            return call()

    for _ in range(times):
        assert Table()[1] is not None


@frame_kind("__contains__")
def through_contains(call: Call, times: int) -> None:
    container = object_with(__contains__=lambda self, item: call() >= 0)
    for _ in range(times):
        assert 1 in container or True


@frame_kind("__iter__ in list()")
def through_list(call: Call, times: int) -> None:
    class Source:
        left = times

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> int:
            if self.left == 0:
                raise StopIteration
            self.left -= 1
            return call()

    list(Source())


@frame_kind("tuple unpacking")
def through_unpacking(call: Call, times: int) -> None:
    _first, *_rest = (*(call() for _ in range(times)), 1)


@frame_kind("dict.update")
def through_update(call: Call, times: int) -> None:
    class Mapping:
        def keys(self) -> list[int]:
            return list(range(times))

        def __getitem__(self, key: int) -> int:
            return call()

    {}.update(Mapping())  # type: ignore[call-overload]


@frame_kind("star arguments")
def through_star_arguments(call: Call, times: int) -> None:
    def collect(*args: int, **named: int) -> None:
        pass

    collect(*(call() for _ in range(times)))


@frame_kind("__format__")
def through_format(call: Call, times: int) -> None:
    value = object_with(__format__=lambda self, spec: str(call()))
    for _ in range(times):
        assert f"{value:x}"


@frame_kind("__repr__ in a container")
def through_repr(call: Call, times: int) -> None:
    value = object_with(__repr__=lambda self: str(call()))
    for _ in range(times):
        assert repr([{1: (value,)}])


@frame_kind("__index__")
def through_index(call: Call, times: int) -> None:
    value = object_with(__index__=lambda self: call() * 0)
    for _ in range(times):
        assert [1][value] == 1


@frame_kind("__bool__")
def through_bool(call: Call, times: int) -> None:
    value = object_with(__bool__=lambda self: call() < 0)
    for _ in range(times):
        assert not value


@frame_kind("__radd__")
def through_radd(call: Call, times: int) -> None:
    value = object_with(__radd__=lambda self, other: call())
    for _ in range(times):
        assert 1 + value is not None


@frame_kind("rich comparison in sort")
def through_comparison(call: Call, times: int) -> None:
    def less(self: object, other: object) -> bool:
        call()
        return False

    cls = type("Ordered", (), {"__lt__": less})
    for _ in range(times):
        [cls(), cls()].sort()  # type: ignore[type-var]


@frame_kind("__instancecheck__")
def through_instancecheck(call: Call, times: int) -> None:
    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            call()
            return True

    class Any_(metaclass=Meta):
        pass

    for _ in range(times):
        assert isinstance(1, Any_)


@frame_kind("__del__", each_swallowed)
def through_del(call: Call, times: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            call()

    for _ in range(times):
        Finalized()


@frame_kind("__del__ of a local", each_swallowed)
def through_del_of_local(call: Call, times: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            call()

    def holder() -> None:
        one = two = Finalized()  # noqa: F841  dies when the frame is cleared

    for _ in range(times):
        holder()


@frame_kind("weakref callback", each_swallowed)
def through_weakref(call: Call, times: int) -> None:
    class Referenced:
        pass

    for _ in range(times):
        referenced = Referenced()
        reference = weakref.ref(referenced, call)
        del referenced
        assert reference() is None


@frame_kind("weakref.finalize", each_swallowed)
def through_finalize(call: Call, times: int) -> None:
    class Referenced:
        pass

    for _ in range(times):
        referenced = Referenced()
        weakref.finalize(referenced, call).atexit = False
        del referenced


def nest(value: object, depth: int) -> object:
    for level in range(depth):
        value = (value, None) if level % 3 else [value, {}]
    return value


def while_deallocating(call: Call, times: int, deallocate: Any) -> None:
    """Call ``deallocate()``, which lets an object die that makes the call.

    Up to 3.12, where something is being deallocated, it would not die at once.
    """
    t = call.t  # type: ignore[attr-defined]
    for _ in range(times):
        if t.deallocates and sys.version_info < (3, 13):
            try:
                call()
            except BaseException as exc:
                t.unraisable(exc)
        else:
            before, t.deallocates = t.deallocates, True
            try:
                deallocate()
            finally:
                t.deallocates = before


@frame_kind("deep deallocation", each_swallowed, needs="trashcan")
def through_trashcan(call: Call, times: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            call()

    noise = call.t.world.noise  # type: ignore[attr-defined]

    def deallocate() -> None:
        inner = nest(Finalized(), noise.choice((3, 40, 49, 51, 60, 120, 400)))
        outer = nest(inner, noise.choice((0, 45, 100)))
        del inner
        del outer

    while_deallocating(call, times, deallocate)


@frame_kind("deallocation in deallocation", each_swallowed, needs="trashcan")
def through_nested_trashcan(call: Call, times: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            junk = nest(None, 200)
            del junk
            call()
            junk = nest(None, 200)
            del junk

    def deallocate() -> None:
        nested = nest(Finalized(), 150)
        del nested

    while_deallocating(call, times, deallocate)


@frame_kind("dict.clear", each_swallowed)
def through_dict_clear(call: Call, times: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            call()

    {number: Finalized() for number in range(times)}.clear()


@frame_kind("bytearray of indexes", each)
def through_bytearray(call: Call, times: int) -> None:
    value = object_with(__index__=lambda self: call() * 0)
    bytearray([value] * times)
