"""A program for tools to look at, as one writes it natively.

`twins.py` makes the other form of it, line by line the same. There the functions
called ``sync_...`` are no coroutines: they call each other without ``await``, and
for all else that they await they use ``greenback.await_``.

`twins.py` also sets what the program gets from outside: ``look(where)`` is a sync
function that is called at each point of interest; ``await pause()`` lets other tasks
run once; ``await gate()`` waits until somebody opens it; ``await start()`` gives the
task a portal, or only pauses.
"""

look = pause = gate = start = None


class Stop(Exception):
    pass


# --- a stack of sync and async functions -----------------------------------------


async def leaf(value):
    look("leaf")
    await pause()
    look("leaf resumed")
    return value


async def sync_bottom(value):
    look("bottom")
    result = await leaf(value)
    look("bottom resumed")
    return result


async def between(value):
    look("between")
    result = await sync_bottom(value)
    look("between resumed")
    return result


async def sync_middle(value):
    for number in range(2):
        result = await between(number + value)
    look("middle")
    return result


async def sync_top(value):
    result = await sync_middle(value)
    look("top")
    return result


async def task():
    await start()
    return await sync_top(3)


async def scoped_task():
    await pause()
    return await sync_top(3)


# --- one that waits --------------------------------------------------------------


async def leaf_waiting():
    await gate()


async def sync_waiting_inner(value):
    look("waiting")
    await leaf_waiting()
    look("gone on")
    return value


async def waiting_between(value):
    return await sync_waiting_inner(value)


async def sync_waiting(value):
    marker = "in sync code"
    result = await waiting_between(value)
    return result, marker


async def waiting():
    marker = "in the task"
    await start()
    result = await sync_waiting(7)
    return result, marker


async def scoped_waiting():
    await pause()
    return await sync_waiting(7)


async def sync_holding(make):
    value = make()
    return (await sync_waiting_inner(value)) is None


async def holding(make):
    await start()
    return await sync_holding(make)


# --- a flow of control with many kinds of statements ------------------------------


class Manager:
    def __enter__(self):
        look("enter")
        return self

    def __exit__(self, *exc):
        look("exit")
        return False


def helper(number):
    if number % 2:
        return number
    return -number


async def leaf_failing(number):
    await pause()
    if number == 2:
        raise Stop(number)
    return helper(number)


async def sync_loop(count):
    total = 0
    for number in range(count):
        with Manager():
            total += await leaf_failing(number)
            if total > 100:
                raise AssertionError
            total += sum(helper(part) for part in range(number))
    return total


async def sync_caught(count):
    try:
        return await sync_loop(count)
    except Stop as stop:
        look("caught")
        number = await leaf(stop.args[0])
    else:
        raise AssertionError
    finally:
        look("finally")
        await pause()
    while number:
        number -= 1
        await pause()
    return number


async def flow():
    await start()
    results = [await sync_caught(1), await sync_caught(3)]
    try:
        await sync_loop(4)
    except Stop:
        return results


# --- exceptions ------------------------------------------------------------------


async def sync_handling():
    try:
        raise Stop("outer")
    except Stop:
        look("handling")
        await pause()
        look("handling after a pause")
        try:
            await leaf_failing(2)
        except Stop:
            look("handling both")
            await gate()
            look("handling both after a wait")
        look("handling the outer one")
    look("handled")


async def handling():
    await start()
    await sync_handling()


async def sync_failing(depth):
    if depth:
        return await failing_between(depth - 1)
    await pause()
    return await leaf_failing(2)


async def failing_between(depth):
    return await sync_failing(depth)


async def failing():
    await start()
    await sync_failing(2)


# --- an async generator ----------------------------------------------------------


async def numbers():
    look("in the generator")
    await gate()
    yield 1
    look("in the generator again")
    yield 2


async def sync_consume(generator):
    look("before")
    first = await generator.asend(None)
    look("between")
    second = await anext(generator)
    look("before the end")
    last = await anext(generator, None)
    look("after")
    return first, second, last


async def consuming():
    await start()
    return await sync_consume(numbers())
