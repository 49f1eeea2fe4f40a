"""One round: a random program, run natively and with portals, and compared."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import checks
import frames
import frames_calls
import frames_control
import frames_native
import frames_objects
import loops
import noise
import programs
import trampolines
from world import EXCEPTIONS, Iterate, Manager, Mismatch, Task, World, unraisable_hook

import greenback

REGISTERED = (frames_calls, frames_control, frames_native, frames_objects)


@dataclass
class Options:
    tasks: int = 0
    greenlets: bool = False
    rounds: str = "all"
    keep: set[str] = field(default_factory=set)
    print_source: bool = False


class Difference(Exception):
    """The two runs of a program differ."""


class ProgramShown(Exception):
    """The program was printed and not run."""


def greenlet_engine() -> bool:
    return str(getattr(greenback, "engine", "greenlet")) == "greenlet"


def namespace(world: World) -> dict[str, Any]:
    names: dict[str, Any] = {
        "Iterate": Iterate,
        "Manager": Manager,
        "CancelledError": trampolines.asyncio.CancelledError,
        "frames": frames.SYNC if world.portal else frames.NATIVE,
        **EXCEPTIONS,
    }
    world.functions = names
    return names


# Where tracing is switched on or off, CPython looks for frames that run, to change their
# code. A suspended sync call is not found, and goes on in code which debug builds refuse.
DEBUG_BUILD = hasattr(sys, "gettotalrefcount")


# CPython 3.11 itself, without us, now and then leaves coroutines out of the traceback of
# what is thrown through them.
LOSES_ENTRIES = sys.version_info < (3, 12)


def make_world(seed: int, portal: bool, counts: Counter[str], **options: Any) -> World:
    return World(seed, portal, counts, greenlet_engine=greenlet_engine(), **options)


def are_same(native: Any, portal: Any) -> bool:
    """Whether two logs, or parts of them, are equal."""
    if native == portal:
        return True
    if not (LOSES_ENTRIES and isinstance(native, (list, tuple))):
        return False
    if type(native) is not type(portal):
        return False
    if native and all(map(checks.is_traceback_entry, native)):
        others = iter(portal)
        return all(entry in others for entry in native)
    return len(native) == len(portal) and all(map(are_same, native, portal))


def compare(program: programs.Program, native: World, portal: World) -> None:
    if checks.mismatches:
        raise Difference(f"kinds: {sorted(program.kinds)}\n{checks.mismatches[0]}")
    if are_same(native.log, portal.log):
        return
    lines = []
    for number, (one, two) in enumerate(zip(native.log, portal.log, strict=False)):
        if not are_same(one, two):
            lines += [f"  event {number - 1}: {native.log[number - 1]}"] * (number > 0)
            lines += [f"  native:  {one}", f"  portals: {two}"]
            break
    else:
        shorter = min(len(native.log), len(portal.log))
        rest = native.log[shorter:] or portal.log[shorter:]
        name = "native" if len(native.log) > shorter else "portals"
        lines.append(f"  only {name} went on: {rest[:2]}")
    lines += [f"  native, last error: {native.errors[-1:]}"]
    lines += [f"  portals, last error: {portal.errors[-1:]}"]
    lines += [f"  portals, stray errors: {portal.strays[-1:]}"]
    raise Difference("\n".join([f"kinds: {sorted(program.kinds)}", *lines]))


def kinds_for(options: Options, *given: str, small_stack: bool = False) -> list[str]:
    needs = [*given]
    if options.greenlets:
        needs.append("greenlet")
    # Up to 3.12 greenlet lets the loop's side deallocate what waits for a suspended one.
    # In 3.13 it waits where the C recursion limit is near, which is low in debug builds.
    wanted = (3, 14) if DEBUG_BUILD else (3, 13) if greenlet_engine() else (3, 11)
    # From 3.14 on it waits where the end of the C stack is near, too.
    if sys.version_info >= wanted and not (small_stack and sys.version_info >= (3, 14)):
        needs.append("trashcan")
    kinds = frames.available(*needs)
    return [kind for kind in kinds if kind in options.keep] if options.keep else kinds


def run_twice(
    program: programs.Program,
    wanted: Options,
    counts: Counter[str],
    run: Any,
    **options: Any,
) -> None:
    if wanted.print_source:
        print(program.source(portal=True), f"# tasks: {program.roots}", sep="\n")
        raise ProgramShown
    worlds: list[World] = []
    if any("greenlet" in kind for kind in program.kinds):
        options["compares_callers"] = options["compares_handled"] = False
    options["loop_handles"] = not any(kind[:6] == "Cython" for kind in program.kinds)
    for portal in (False, True):
        # The native run counts nothing.
        world = make_world(
            program.seed, portal, counts if portal else Counter(), **options
        )
        if "ExitStack callback" in program.kinds:
            world.chain = 1  # it changes the __context__ of what passes through
        exec(program.compiled(portal), namespace(world))
        run(world)
        worlds.append(world)
    compare(program, *worlds)


def trampoline_round(seed: int, options: Options, counts: Counter[str]) -> None:
    choices = random.Random(seed)
    tasks = options.tasks or choices.randint(1, 6)
    disguised = choices.random() < 0.5
    needs = ["main thread", "known tasks"]
    needs += ["one task"] if tasks == 1 else []
    if not disguised:
        needs.append("no loop")
    elif tasks > 1:
        needs.append("disguise")
    kinds = kinds_for(options, *needs)
    limits = programs.Limits(
        tracing=not DEBUG_BUILD, recursion=choices.choice((5, 60, 60, 150))
    )
    program = programs.Generator(seed, kinds, limits).program(tasks)
    alarms = choices.random() < 0.25
    # All the time, in both runs.
    tracer = choices.choice(("trace", "profile", "monitor", *[""] * 17))

    def run(world: World) -> None:
        if world.portal and alarms:
            noise.alarms_on(world)
        try:
            if tracer:
                noise.tracing_on(Task(world, "tracer", greenback), tracer)
            trampolines.run_trampoline(world, program.roots, greenback)
        finally:
            noise.alarms_off()
            noise.all_off()

    run_twice(
        program,
        options,
        counts,
        run,
        disguised=disguised,
        noise_level=choices.choice((0.0, 0.1, 0.6)),
        checks_thread_state=choices.random() < 0.7,
    )


def thread_round(seed: int, options: Options, counts: Counter[str]) -> None:
    """Several threads at once, some with small stacks."""
    choices = random.Random(seed)
    disguised = choices.random() < 0.5
    errors: list[BaseException] = []

    def target(number: int, small: bool) -> None:
        limits = programs.Limits(
            tracing=not DEBUG_BUILD,
            functions=5,
            recursion=6 if small else 40,
            suspensions_per_function=20,
        )
        own_seed = seed * 100 + number
        needs = ["known tasks", *["disguise"] * disguised]
        kinds = kinds_for(options, *needs, small_stack=small)
        program = programs.Generator(own_seed, kinds, limits).program(2)

        def run(world: World) -> None:
            try:
                trampolines.run_trampoline(world, program.roots, greenback)
            finally:
                sys.settrace(None)
                sys.setprofile(None)

        try:
            run_twice(
                program,
                options,
                counts,
                run,
                small_stack=small,
                disguised=disguised,
                noise_level=0.2,
            )
        except BaseException as error:
            error.add_note(f"in thread {number}")
            errors.append(error)

    jit: Any = getattr(sys, "_jit", None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(choices.choice((1e-6, 1e-4, 5e-3)))
    threads = []
    try:
        number_of_threads = choices.randint(2, 4)
        if jit is not None and jit.is_enabled():
            # CPython 3.15.2 crashes when one thread makes an executor for an
            # instruction that another is tracing: it takes the old argument for the
            # executor's number (_PyJit_translate_single_bytecode_to_trace).
            number_of_threads = 1
        for number in range(number_of_threads):
            size = choices.choice((128, 256, 0))
            if greenlet_engine() and sys.version_info >= (3, 14):
                size = 0  # greenlet crashes near the end of a stack
            if jit is not None and jit.is_enabled():
                size = 0  # its optimizer alone takes more than 100 KB
            small = bool(size)
            # In debug builds C frames are several times as large.
            threading.stack_size(size * 1024 * (4 if DEBUG_BUILD else 1))
            thread = threading.Thread(target=target, args=(number, small))
            thread.start()
            threads.append(thread)
    finally:
        threading.stack_size(0)
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
        noise.all_off()
    counts["threads"] += len(threads)
    if errors:
        raise errors[0]


def loop_round(seed: int, options: Options, counts: Counter[str]) -> None:
    choices = random.Random(seed)
    name = choices.choice(loops.names())
    library = "trio" if name.startswith("trio") else "asyncio"
    kinds = kinds_for(options, "main thread", "known tasks", library)
    limits = programs.Limits(
        tracing=not DEBUG_BUILD, functions=6, recursion=30, suspensions_per_function=25
    )
    program = programs.Generator(seed, kinds, limits).program(
        options.tasks or choices.randint(1, 4)
    )
    counts[f"rounds on {name}"] += 1

    def run(world: World) -> None:
        try:
            loops.run(name, world, program.roots, greenback)
        finally:
            noise.all_off()

    run_twice(program, options, counts, run, noise_level=0.1, compares_handled=False)


ROUNDS = {
    "trampoline": (trampoline_round, 20),
    "threads": (thread_round, 2),
    "loops": (loop_round, 4),
}


def run_round(seed: int, options: Options, counts: Counter[str]) -> str:
    """What the seed stands for; raises Difference or Mismatch. The round's name."""
    name = options.rounds
    if name == "all":
        names = list(ROUNDS)
        weights = [weight for _, weight in ROUNDS.values()]
        name = random.Random(seed * 3).choices(names, weights)[0]
    sys.unraisablehook = unraisable_hook
    alive = frames_native.objects_alive()
    ROUNDS[name][0](seed, options, counts)
    counts["programs"] += 1
    if name == "trampoline" and frames_native.objects_alive() != alive:
        raise Mismatch(
            f"C++ objects alive: {alive} before, {frames_native.objects_alive()} after"
        )
    return name
