"""What a server would not answer, and when that is the server's fault and not the texts'."""

import threading
from collections.abc import Callable
from typing import Any

from gecko.core.errors import TeacherError
from gecko.llm.base import Refusal, Usage

LEAST_ANSWERS = 8  # after so many without any label the prompt is given up, after so many refusals the server may be
LEAST_REFUSED = 3  # texts after whose refusal a server that has answered nothing is given up


class Refusals:
    """Counts what is answered and what is refused, from several threads; ``where`` names model and address in messages."""

    def __init__(self, usage: Usage, where: str, say: Callable[[str], None]) -> None:
        self._usage, self._where, self._say = usage, where, say
        self._lock = threading.Lock()
        self._answered = 0
        self._items: set[tuple[Any, ...]] = set()

    def answered(self) -> None:
        """A text was answered."""
        with self._lock:
            self._answered += 1

    def refused(self, kind: str, said: str, item: tuple[Any, ...], place: int) -> None:
        """A text was not: the passage and the query of ``item``, or how a text was to be written.

        ``said`` is the server's sentence, and ``place`` which of the caller's passages it belongs to. Raises
        TeacherError: more was refused than answered, of several texts, so it is not the text that is at fault.
        """
        with self._lock:
            self._usage.refused += 1
            self._usage.refusals.append(Refusal(place, f"refused by the teacher ({kind})", said))
            first = not self._items
            self._items.add(item if len(item) == 2 else (item[0], ""))
            refused, asked = self._usage.refused, self._usage.refused + self._answered
        if first:
            self._say(f"{self._where} does not answer one text ({said}); such texts are left out and counted")
        if self._texts() >= LEAST_ANSWERS and 2 * refused > asked:
            raise TeacherError(self._refuses(refused, asked, said))

    def check(self) -> None:
        """At the end of a call. Raises TeacherError: several texts were refused, and nothing was ever answered."""
        if not self._answered and self._texts() >= LEAST_REFUSED:
            refused = self._usage.refused
            raise TeacherError(self._refuses(refused, refused, self._usage.refusals[-1].said))

    def _texts(self) -> int:
        """How many texts at least must be at fault: a passage may be so under each query, and a query under each passage."""
        with self._lock:
            columns = [set(column) for column in zip(*self._items, strict=True)]
        return min((len(column) for column in columns if column != {""}), default=0)

    def _refuses(self, refused: int, asked: int, said: str) -> str:
        return (
            f"{self._where} refused {refused:,} of {asked:,} texts, the last with {said}; mend what it complains of, "
            "or take another server. What was finished before is kept, run the same command again"
        )
