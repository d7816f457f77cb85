"""Errors of libraries, looked through: they wrap what happened in exceptions of their own."""

from __future__ import annotations


def causes(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from, and so on, each once."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
