"""What is needed in a process that ``os.fork`` made: of its parent's threads, only the one that called fork is in it.

OpenMP keeps its workers by the thread that asked for them, and waits for the parent's for ever. A thread that begins in the
child has none yet. So what torch or faiss would compute in the child's first thread is computed in another one.
"""

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import ParamSpec, TypeVar

from gecko.core.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

_BESIDE: list[ThreadPoolExecutor] = []  # in a child: one of one thread, for the calls of the child's first thread


def survives_fork(do: Callable[P, T]) -> Callable[P, T]:
    """Have a function that computes with torch or faiss work in a child of fork, too.

    Its calls raise ConfigError where the parent had used a GPU, which no child of fork can use.
    """

    @wraps(do)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _BESIDE:
            return do(*args, **kwargs)
        try:
            if threading.current_thread() is threading.main_thread():
                return _BESIDE[0].submit(do, *args, **kwargs).result()
            return do(*args, **kwargs)
        except RuntimeError as error:
            if "in forked subprocess" in str(error):
                raise ConfigError(
                    "this process was forked from one that had used the GPU, and cannot use it; start processes with "
                    "multiprocessing's 'spawn', or fork before a model is loaded"
                ) from error
            raise

    return run


class Lock:
    """A lock that nobody holds in a child of fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _LOCKS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Let go of it, whoever held it."""
        self._lock = threading.Lock()


_LOCKS: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _begin_child() -> None:
    _BESIDE[:] = [ThreadPoolExecutor(1, "gecko-forked")]
    for lock in list(_LOCKS):
        lock.renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_begin_child)
