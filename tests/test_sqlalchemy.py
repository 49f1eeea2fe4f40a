"""SQLAlchemy's async engine, which switches greenlets itself, together with ours."""

from __future__ import annotations

import asyncio

import pytest

import greenback

sqlalchemy = pytest.importorskip("sqlalchemy")
pytest.importorskip("aiosqlite")
concurrency = pytest.importorskip("sqlalchemy.util.concurrency")
aio = pytest.importorskip("sqlalchemy.ext.asyncio")

ASYNCIO_IDS = [
    "asyncio",
    "asyncio-pytask",
    "asyncio-subclass",
    "asyncio-eager",
    "uvloop",
]
pytestmark = pytest.mark.parametrize("runner", ASYNCIO_IDS, indirect=True)


@pytest.fixture(autouse=True)
def not_eager_on_greenlets(runner):
    """Leave out what no engine made of greenlets can do."""
    if runner.eager and getattr(greenback, "engine", "greenlet") == "greenlet":
        pytest.skip(
            "an eager task takes its first step in the greenlet of its parent's portal "
            "and the others in the loop's; SQLAlchemy expects one and the same"
        )


greenlet_spawn = concurrency.greenlet_spawn
await_only = concurrency.await_only


async def pause(value):
    """Suspend, then give *value*."""
    await asyncio.sleep(0)
    return value


def with_engine(runner, body):
    """Run ``await body(engine)`` with a new database in memory."""

    async def main():
        engine = aio.create_async_engine("sqlite+aiosqlite://")
        try:
            return await body(engine)
        finally:
            await engine.dispose()

    return runner.run(main)


def create_rows(connection):
    """Make a table with three rows, through the synchronous API."""
    connection.execute(sqlalchemy.text("create table numbers (n integer)"))
    connection.execute(
        sqlalchemy.text("insert into numbers values (:n)"), [{"n": n} for n in range(3)]
    )


def read_rows(connection):
    """Read them back."""
    result = connection.execute(sqlalchemy.text("select n from numbers order by n"))
    return [row[0] for row in result]


def test_run_sync(runner):
    """await_ works in what run_sync calls, between its queries."""

    def in_run_sync(connection):
        create_rows(connection)
        first = greenback.await_(pause("first"))
        rows = read_rows(connection)
        second = greenback.await_(pause("second"))
        return first, rows, second, read_rows(connection)

    async def body(engine):
        await greenback.ensure_portal()
        async with engine.begin() as connection:
            return await connection.run_sync(in_run_sync)

    assert with_engine(runner, body) == ("first", [0, 1, 2], "second", [0, 1, 2])


def test_engine_in_sync_code(runner):
    """The whole async engine is used from sync code of a portal."""

    def sync(engine):
        with greenback.async_context(engine.begin()) as connection:
            greenback.await_(connection.run_sync(create_rows))
            rows = greenback.await_(connection.run_sync(read_rows))
            stream = greenback.await_(connection.stream(sqlalchemy.text("select 7")))
            return rows, [row[0] for row in greenback.async_iter(stream)]

    async def body(engine):
        return await greenback.with_portal_run_sync(sync, engine)

    assert with_engine(runner, body) == ([0, 1, 2], [7])


def test_event_hooks(runner):
    """Event hooks, called by SQLAlchemy deep inside, await."""
    seen = []

    async def body(engine):
        @sqlalchemy.event.listens_for(engine.sync_engine, "before_cursor_execute")
        def before(connection, cursor, statement, *rest):
            seen.append(("before", greenback.await_(pause(statement.split()[0]))))

        @sqlalchemy.event.listens_for(engine.sync_engine, "after_cursor_execute")
        def after(connection, cursor, statement, *rest):
            seen.append(("after", greenback.await_(pause(statement.split()[0]))))

        @sqlalchemy.event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection, record):
            seen.append(("connect", greenback.await_(pause(""))))

        await greenback.ensure_portal()
        async with engine.begin() as connection:
            await connection.execute(
                sqlalchemy.text("create table numbers (n integer)")
            )
            await connection.execute(sqlalchemy.text("insert into numbers values (1)"))
            return await connection.run_sync(read_rows)

    assert with_engine(runner, body) == [1]
    assert [entry for entry in seen if entry[0] != "connect"] == [
        (when, word)
        for word in ("create", "insert", "select")
        for when in ("before", "after")
    ]
    assert ("connect", "") in seen


def test_orm_session_hooks(runner):
    """Hooks of the ORM's session await while it flushes."""
    orm = pytest.importorskip("sqlalchemy.orm")

    class Base(orm.DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "items"
        id = orm.mapped_column(sqlalchemy.Integer, primary_key=True)
        name = orm.mapped_column(sqlalchemy.String)

    @sqlalchemy.event.listens_for(Item, "before_insert")
    def before_insert(mapper, connection, target):
        target.name = greenback.await_(pause(target.name.upper()))

    async def body(engine):
        await greenback.ensure_portal()
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with aio.AsyncSession(engine) as session:
            session.add_all([Item(name=name) for name in ("a", "b", "c")])
            await session.commit()
            found = await session.scalars(
                sqlalchemy.select(Item.name).order_by(Item.id)
            )
            return list(found)

    assert with_engine(runner, body) == ["A", "B", "C"]


def test_without_portal(runner):
    """run_sync in a task without a portal: await_ says so, all else works."""

    def in_run_sync(connection):
        create_rows(connection)
        with pytest.raises(RuntimeError, match="must create a greenback portal"):
            greenback.await_(pause(1))
        return read_rows(connection)

    async def body(engine):
        async with engine.begin() as connection:
            return await connection.run_sync(in_run_sync)

    assert with_engine(runner, body) == [0, 1, 2]


def test_mixed_both_ways(runner):
    """greenlet_spawn in await_ in greenlet_spawn, and await_only with await_."""

    def level(depth):
        values = [greenback.await_(pause(depth)), await_only(pause(-depth))]
        if depth:
            spawned = greenlet_spawn(level, depth - 1)
            # By turns, the one or the other drives the inner greenlet.
            values += greenback.await_(spawned) if depth % 2 else await_only(spawned)
        return [*values, await_only(pause(depth)), greenback.await_(pause(-depth))]

    async def main():
        await greenback.ensure_portal()
        return await greenlet_spawn(level, 4)

    def expected(depth):
        inner = expected(depth - 1) if depth else []
        return [depth, -depth, *inner, depth, -depth]

    assert runner.run(main) == expected(4)


def test_mixed_exceptions(runner):
    """Exceptions cross both kinds of greenlet."""

    async def failing():
        await asyncio.sleep(0)
        raise LookupError("deep inside")

    def inner():
        try:
            await_only(failing())
        except LookupError:
            greenback.await_(failing())

    def outer():
        greenback.await_(greenlet_spawn(inner))

    async def main():
        await greenback.ensure_portal()
        with pytest.raises(LookupError, match="deep inside"):
            await greenlet_spawn(outer)
        with pytest.raises(LookupError, match="deep inside"):
            outer()
        return greenback.await_(pause("fine"))

    assert runner.run(main) == "fine"


def test_cancelled_in_run_sync(runner):
    """Cancelling a task that waits in await_ in run_sync unwinds both."""
    log = []

    async def body(engine):
        waiting = asyncio.Event()

        def in_run_sync(connection):
            waiting.set()
            try:
                greenback.await_(asyncio.get_running_loop().create_future())
            except asyncio.CancelledError:
                log.append(greenback.await_(pause("clean-up")))
                raise
            finally:
                log.append("finally")

        async def task():
            await greenback.ensure_portal()
            async with engine.begin() as connection:
                await connection.run_sync(in_run_sync)

        child = runner.spawn(task)
        await waiting.wait()
        child.cancel()
        with pytest.raises(runner.ChildCancelled):
            await child.join()

    with_engine(runner, body)
    assert log == ["clean-up", "finally"]


def test_many_sessions(runner):
    """Many tasks, each with its connection and hooks, at the same time."""

    async def body(engine):
        async def task(number):
            await greenback.ensure_portal()

            def in_run_sync(connection):
                values = []
                for step in range(3):
                    statement = sqlalchemy.text("select :value")
                    result = connection.execute(
                        statement, {"value": number * 10 + step}
                    )
                    values.append(result.scalar_one())
                    greenback.await_(pause(None))
                return values

            async with aio.create_async_engine("sqlite+aiosqlite://").connect() as own:
                try:
                    return await own.run_sync(in_run_sync)
                finally:
                    await own.close()
                    await own.engine.dispose()

        return await runner.run_concurrently(*[lambda n=n: task(n) for n in range(8)])

    assert with_engine(runner, body) == [
        [n * 10 + k for k in range(3)] for n in range(8)
    ]
