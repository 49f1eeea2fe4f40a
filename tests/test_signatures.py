"""Names, signatures and documentation of the public interface."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import subprocess
import sys
import types

import pytest

import greenback

# What the pure-Python 1.3.0 has, annotations left out.
SIGNATURES = {
    "AutoPortalInstrument": "()",
    "async_context": "(cm)",
    "async_iter": "(iterable)",
    "autoawait": "(fn)",
    "await_": "(aw)",
    "bestow_portal": "(task)",
    "decorate_as_sync": "(decorator)",
    "ensure_portal": "()",
    "has_portal": "(task=None)",
    "portals_for_children": "()",
    "portals_for_tree": "()",
    "with_portal_run": "(async_fn, *args, **kwds)",
    "with_portal_run_sync": "(sync_fn, *args, **kwds)",
    "with_portal_run_tree": "(async_fn, *args, **kwds)",
}
# What is new in 2.0 and a function.
NEW_SIGNATURES = {
    "allow_nested_run": "()",
    "portal_task_factory": "(inner=None)",
}
ALL_SIGNATURES = SIGNATURES | NEW_SIGNATURES
IPYTHON_HOOKS = {"load_ipython_extension", "unload_ipython_extension"}
FUNCTIONS = sorted(set(SIGNATURES) - {"AutoPortalInstrument"})
COROUTINE_FUNCTIONS = [
    "ensure_portal",
    "with_portal_run",
    "with_portal_run_sync",
    "with_portal_run_tree",
]


def bare(signature: inspect.Signature) -> str:
    """Write a signature without its annotations."""
    return str(
        signature.replace(
            parameters=[
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in signature.parameters.values()
            ],
            return_annotation=inspect.Signature.empty,
        )
    )


@pytest.mark.parametrize("name", ALL_SIGNATURES)
def test_signature(name: str) -> None:
    """inspect.signature() gives what it gave in 1.3.0."""
    assert bare(inspect.signature(getattr(greenback, name))) == ALL_SIGNATURES[name]


@pytest.mark.parametrize(
    ("owner", "method", "expected"),
    [
        ("async_context", "__enter__", "(self)"),
        ("async_context", "__exit__", "(self, *exc)"),
        ("async_iter", "__iter__", "(self)"),
        ("async_iter", "__next__", "(self)"),
    ],
)
def test_method_signature(owner: str, method: str, expected: str) -> None:
    """inspect.signature() works for methods; self may be positional-only."""
    function = getattr(getattr(greenback, owner), method)
    signature = bare(inspect.signature(function)).replace("(self, /", "(self")
    assert signature == expected


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("send", (1,)), ("throw", (ValueError(),)), ("close", ())],
)
def test_generator_method_signature(method: str, arguments: tuple[object]) -> None:
    """The generator methods have signatures that bind their arguments."""

    async def agen():  # type: ignore[no-untyped-def]
        yield

    bound = getattr(greenback.async_iter(agen()), method)
    inspect.signature(bound).bind(*arguments)


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("await_", "aw"),
        ("async_context", "cm"),
        ("async_iter", "iterable"),
        ("autoawait", "fn"),
        ("decorate_as_sync", "decorator"),
        ("has_portal", "task"),
        ("bestow_portal", "task"),
    ],
)
def test_keyword_argument(name: str, keyword: str) -> None:
    """The parameters can be passed by name, as in 1.3.0; another name cannot."""

    async def agen():  # type: ignore[no-untyped-def]
        yield

    function = getattr(greenback, name)
    value = {"aw": agen(), "iterable": agen(), "task": None}.get(keyword, len)
    try:
        function(**{keyword: value})
    except TypeError as error:
        assert "argument" not in str(error)
    except Exception:
        pass
    with pytest.raises(TypeError):
        function(**{keyword + "x": value})
    with pytest.raises(TypeError):
        function(value, value)


@pytest.mark.parametrize("name", ["await_", "bestow_portal", "async_iter", "autoawait"])
def test_missing_argument(name: str) -> None:
    """A call without the argument is a TypeError."""
    with pytest.raises(TypeError):
        getattr(greenback, name)()


def test_public_names() -> None:
    """What the package shows is what is documented, and nothing else."""
    names = {
        name
        for name, value in vars(greenback).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert names >= IPYTHON_HOOKS  # for IPython, which looks for them by name
    names -= IPYTHON_HOOKS
    names -= {"set_trace"}
    assert names == {*ALL_SIGNATURES, "engine", "forbid_await"}
    exported = getattr(greenback, "__all__", None)
    if exported is not None:
        assert set(exported) - {"__version__", "set_trace"} == names
        assert len(set(exported)) == len(exported)


@pytest.mark.parametrize("name", sorted(IPYTHON_HOOKS))
def test_ipython_hook(name: str) -> None:
    """IPython's hooks take the shell, and are no part of `import *`."""
    function = getattr(greenback, name)
    assert bare(inspect.signature(function)) == "(ipython)"
    assert inspect.getdoc(function)
    assert name not in greenback.__all__


def test_set_trace() -> None:
    """It can be called by breakpoint(), and is part of `import *`."""
    assert bare(inspect.signature(greenback.set_trace)) == "(*, header=None)"
    assert inspect.getdoc(greenback.set_trace)
    assert "set_trace" in greenback.__all__


def test_star_import() -> None:
    """`from greenback import *` brings exactly the public functions."""
    namespace: dict[str, object] = {}
    exec("from greenback import *", namespace)
    assert {name for name in namespace if name[0] != "_"} >= set(ALL_SIGNATURES)


def test_version_and_engine() -> None:
    """The version is a string, the engine one of the two."""
    from importlib.metadata import version

    assert greenback.__version__ == version("greenback")
    assert greenback.engine in ("greenlet", "direct")


@pytest.mark.parametrize("name", ALL_SIGNATURES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_by_name(name: str, protocol: int) -> None:
    """Each public object pickles as a reference to itself."""
    value = getattr(greenback, name)
    assert pickle.loads(pickle.dumps(value, protocol)) is value
    assert copy.deepcopy(value) is value


@pytest.mark.parametrize("name", ALL_SIGNATURES)
def test_documentation(name: str) -> None:
    """Each public object has a docstring of its own, and its own name."""
    value = getattr(greenback, name)
    assert inspect.getdoc(value)
    assert len(inspect.getdoc(value)) > 40  # type: ignore[arg-type]
    assert value.__name__ == name
    assert value.__qualname__ == name
    assert value.__module__.split(".")[0] == "greenback"


def test_module_documentation() -> None:
    """help() works on the package and on each of its names."""
    assert greenback.__doc__
    assert pydoc.render_doc(greenback)
    for name in ALL_SIGNATURES:
        assert name in pydoc.plain(pydoc.render_doc(getattr(greenback, name)))


@pytest.mark.parametrize("name", COROUTINE_FUNCTIONS)
def test_is_coroutine_function(name: str) -> None:
    """inspect.iscoroutinefunction() says so for what is an `async def`."""
    assert inspect.iscoroutinefunction(getattr(greenback, name))


@pytest.mark.parametrize("name", ["await_", "has_portal", "bestow_portal", "autoawait"])
def test_is_no_coroutine_function(name: str) -> None:
    """Plain functions are not taken for coroutine functions."""
    assert not inspect.iscoroutinefunction(getattr(greenback, name))


def test_autoawait_keeps_metadata() -> None:
    """The wrapped function keeps name, docstring, signature and attributes."""

    @greenback.autoawait
    async def fn(a: int, *, b: str = "x") -> int:
        """Add nothing."""
        return a

    assert fn.__name__ == "fn"
    assert fn.__doc__ == "Add nothing."
    assert fn.__wrapped__ is not None  # type: ignore[attr-defined]
    assert bare(inspect.signature(fn)) == "(a, *, b='x')"
    assert not inspect.iscoroutinefunction(fn)


def test_classes_are_generic() -> None:
    """Annotations can subscript the wrappers, as with the 1.3.0 classes."""
    assert greenback.async_context[int] is not None
    assert greenback.async_iter[int] is not None


def test_import_is_light() -> None:
    """Importing the package imports no event loop."""
    code = (
        "import sys, greenback\n"
        "heavy = {'asyncio', 'trio', 'anyio', 'uvloop'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
