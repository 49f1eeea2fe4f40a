"""Which engine is in force, and why."""

from __future__ import annotations

from typing import final

from . import _core


@final
class Engine(str):
    """The name of the engine that suspends and resumes synchronous code.

    Attributes
    ----------
    reason : str
        Why it is this one: the end of a sentence that begins "because".
    """

    reason: str

    def __new__(cls, name: str, reason: str) -> Engine:
        self = super().__new__(cls, name)
        self.reason = reason
        return self

    def __repr__(self) -> str:
        return f"<engine {str(self)!r}, because {self.reason}>"

    def __reduce__(self) -> tuple[type[Engine], tuple[str, str]]:
        return Engine, (str(self), self.reason)


engine: Engine = Engine(_core.engine, _core.engine_reason)
