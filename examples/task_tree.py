"""Portals for a whole program: sync plug-ins that await, in tasks of all kinds.

Usage: ``python examples/task_tree.py [--loop uvloop]``. A little shop takes
orders. Its price rules are plain functions that someone else has written; one of
them looks something up in a database that is asynchronous. No task has to care:
``with_portal_run_tree`` gives a portal to all that the program starts.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
from collections.abc import Callable

import greenback

PRICES = {"apple": 40, "pear": 55, "quince": 120}


class Database:
    """Asynchronous, as drivers for asyncio are."""

    async def discount(self, customer: str) -> int:
        """Return the discount of a customer, in percent."""
        await asyncio.sleep(0.05)  # the network
        return len(customer)


database = Database()


def half_price_for_quinces(customer: str, fruit: str, price: int) -> int:
    """Be a rule that needs nothing."""
    return price // 2 if fruit == "quince" else price


def discount(customer: str, fruit: str, price: int) -> int:
    """Be a rule that has to wait."""
    return price - price * greenback.await_(database.discount(customer)) // 100


RULES: list[Callable[[str, str, int], int]] = [half_price_for_quinces, discount]


def price_of(customer: str, fruit: str) -> int:
    """Apply all rules; knows nothing of tasks and loops."""
    price = PRICES[fruit]
    for rule in RULES:
        price = rule(customer, fruit, price)
    return price


async def order(customer: str, fruits: list[str]) -> None:
    """Serve a customer, with a task for each fruit."""

    async def one(fruit: str) -> int:
        return price_of(customer, fruit)

    prices = await asyncio.gather(*map(one, fruits))
    print(f"{customer} pays {sum(prices)} for {', '.join(fruits)}")


async def shop() -> None:
    """Serve all customers at once."""
    async with asyncio.TaskGroup() as customers:
        customers.create_task(order("Ann", ["apple", "quince"]))
        customers.create_task(order("Konstantin", ["pear", "pear", "apple"]))
        await asyncio.wait_for(asyncio.create_task(order("Li", ["quince"])), 10)


def main() -> None:
    """Run the shop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    loop = importlib.import_module(parser.parse_args().loop)
    with asyncio.Runner(loop_factory=loop.new_event_loop) as runner:
        runner.run(greenback.with_portal_run_tree(shop))


if __name__ == "__main__":
    main()
