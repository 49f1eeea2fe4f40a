# /// script
# dependencies = ["sqlalchemy[asyncio]>=2", "aiosqlite"]
# ///
"""SQLAlchemy's ORM on aiosqlite: lazy attributes in sync code, hooks that await, run_sync()."""

from __future__ import annotations

import asyncio
import tempfile

import sqlalchemy
from sqlalchemy import Connection, ForeignKey, event, select
from sqlalchemy.ext.asyncio import (
    AsyncAttrs,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
)

import greenback

MANY = 10  # sessions at once


class Base(AsyncAttrs, DeclarativeBase):
    pass


class HookedSession(Session):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    rate: Mapped[int | None]
    lines: Mapped[list[Line]] = relationship(order_by="Line.id")

    @property
    def total(self) -> int:
        """Sync code that loads what has not been loaded yet."""
        lines = greenback.await_(self.awaitable_attrs.lines)
        return sum(line.price for line in lines)


class Line(Base):
    __tablename__ = "lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    price: Mapped[int]


async def fill(sessions: async_sessionmaker[AsyncSession]) -> None:
    async with sessions.begin() as session:
        for customer in range(MANY):
            lines = [Line(price=customer), Line(price=10)]
            session.add(Order(customer=f"c{customer}", lines=lines))


async def lazy_attributes(sessions: async_sessionmaker[AsyncSession]) -> None:
    await greenback.ensure_portal()
    async with sessions() as session:
        orders = (await session.scalars(select(Order).order_by(Order.id))).all()
        assert "lines" not in vars(orders[3])
        assert [order.total for order in orders] == [10 + n for n in range(MANY)]
        # in C code between the portal and the property
        assert max(orders, key=lambda order: order.total).customer == f"c{MANY - 1}"

        stream = await session.stream_scalars(select(Line.price).order_by(Line.id))
        prices = list(greenback.async_iter(stream))
        assert prices[:4] == [0, 10, 1, 10] and len(prices) == 2 * MANY


async def hooks(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Every session waits in its hook until the others are there, too."""
    all_there = asyncio.Barrier(MANY)
    statements = []

    async def rate(order: Order) -> int:
        await all_there.wait()
        return len(order.customer)

    async def log(statement: str) -> None:
        await asyncio.sleep(0)
        statements.append(statement.split()[0])

    @event.listens_for(HookedSession, "before_flush")
    def set_rates(session: Session, *rest: object) -> None:
        for order in session.dirty:
            order.rate = greenback.await_(rate(order))

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def before_execute(
        connection: object, cursor: object, statement: str, *rest: object
    ) -> None:
        greenback.await_(log(statement))

    def rename(number: int) -> int | None:
        with greenback.async_context(sessions.begin()) as session:
            order = greenback.await_(session.get_one(Order, number))
            order.customer = "x" * number
            greenback.await_(session.flush())
            return order.rate

    numbers = range(1, MANY + 1)
    tasks = (greenback.with_portal_run_sync(rename, number) for number in numbers)
    assert await asyncio.gather(*tasks) == list(numbers)
    assert sorted(statements) == ["SELECT"] * MANY + ["UPDATE"] * MANY

    # Nobody else comes this time: it is cancelled in the hook, deep inside SQLAlchemy.
    task = asyncio.create_task(greenback.with_portal_run_sync(rename, 1))
    while not all_there.n_waiting:
        await asyncio.sleep(0)
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError), outcome
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    event.remove(HookedSession, "before_flush", set_rates)


async def run_sync(engine: AsyncEngine) -> None:
    async def pause(value: int) -> int:
        await asyncio.sleep(0)
        return value

    def read(connection: Connection) -> list[int]:
        return [
            greenback.await_(pause(rate))
            for rate in connection.scalars(select(Order.rate).order_by(Order.id))
        ]

    async with engine.connect() as connection:
        await greenback.ensure_portal()
        assert await connection.run_sync(read) == list(range(1, MANY + 1))


async def main(folder: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/orders.db")
    sessions = async_sessionmaker(engine, sync_session_class=HookedSession)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await fill(sessions)
    await asyncio.create_task(lazy_attributes(sessions))
    await hooks(engine, sessions)
    await asyncio.create_task(run_sync(engine))
    await engine.dispose()


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))
print(
    f"SQLAlchemy {sqlalchemy.__version__}: lazy attributes, run_sync(), {MANY} sessions in hooks"
)
