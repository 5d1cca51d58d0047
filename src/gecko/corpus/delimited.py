"""The rows of CSV and TSV files.

In CSV a cell that begins with ``"`` ends at the next lone ``"``, lines later perhaps, and ``""`` in it is one ``"``.

Of TSV there are two kinds. Programs write it with quotation marks, as CSV; people and databases write it without any, so that
``"`` is a character like another and each line is a row. The whole file decides, once a cell begins with ``"``:

=============================================================  ==============================================
each line has as many cells as the header, and
  a ``"`` stands where no program would leave it               line by line
  no quoted cell goes over several lines                       with quotation marks
  one does, and the header, a ``"`` or nothing is quoted       with quotation marks
  one does, there is no such sign, and there are more columns  line by line
  likewise, and there is one column                            an error: nobody can tell
some line has not, and
  rows with quotation marks have                               with quotation marks
  these have not either                                        an error
=============================================================  ==============================================
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

# Of a line that was left out: whether a quoted cell is open after it, if none was before it, and if one was.
Gap = tuple[bool, bool]
Numbered = Iterable[tuple[int, str | Gap]]  # lines with their ends

_MARK = re.compile(b'"')
_INSIDE = re.compile(r'[^"]*+(?:""[^"]*+)*+')  # of a quoted cell, up to its end or that of the line
_RULE = 'a field that begins with " must end with one, and a " inside it is written twice'


class BadRow(Exception):
    """A row that cannot be read: its first ``line``, and ``what`` is wrong with the mend."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line, self.what = line, what


class Skipped:
    """Follows the quotation marks of lines that are too long to be held."""

    def __init__(self, separator: str) -> None:
        self._separator = separator.encode()
        self._begin()

    def _begin(self) -> None:
        self._open = [False, True]
        self._closed = [-2, -2]  # where a quoted cell ended last
        self._read, self._last = 0, self._separator  # a line begins as a cell does

    def end(self) -> Gap:
        """What is known of the line whose pieces were taken; the next piece begins another one."""
        found = self._open[0], self._open[1]
        self._begin()
        return found

    def take(self, piece: bytes) -> None:
        """The next piece of the line."""
        for mark in _MARK.finditer(piece):
            place = mark.start()
            begins = (piece[place - 1 : place] if place else self._last) == self._separator
            place += self._read
            for before in (0, 1):
                if self._open[before]:
                    self._open[before], self._closed[before] = False, place
                elif begins or self._closed[before] == place - 1:  # "" is one mark of the cell, which goes on
                    self._open[before] = True
        self._read, self._last = self._read + len(piece), piece[-1:] or self._last


@dataclass
class _Row:
    """One row with quotation marks, taken line by line.

    Attributes:
        kept: whether its cells are; else they are only counted, and the row takes no room.
        partial: whether a line of it was left out, so that it is no row.
        cells: those that are complete.
        width: so many are.
        lines: so many were taken.
        bare: whether an unquoted cell has a ``"``, which no program writes.
        sure: whether a quoted cell has ``""`` or is empty, which nobody types.
    """

    separator: str
    kept: bool = True
    partial: bool = False
    cells: list[str] = field(default_factory=list)
    width: int = 0
    lines: int = 0
    bare: bool = False
    sure: bool = False
    _open: list[str] | None = None

    def take(self, line: str) -> bool:
        """Whether the row is complete with this line. Raises ValueError: something follows the end of a quoted cell."""
        self.lines += 1
        body, place = _body(line), 0
        while True:
            if self._open is None and not body.startswith('"', place):
                end = body.find(self.separator, place)
                cell = body[place:] if end < 0 else body[place:end]
                self.bare |= '"' in cell
                self._add(cell)
                if end < 0:
                    return True
                place = end + 1
                continue
            begins = self._open is None
            if self._open is None:
                self._open, place = [], place + 1
            match = _INSIDE.match(line, place)
            assert match is not None
            self.sure |= '""' in match[0] or (begins and line[place : place + 1] == '"')
            if self.kept:
                self._open.append(match[0].replace('""', '"'))
            if match.end() == len(line):
                return False
            self._add("".join(self._open))
            self._open, place = None, match.end() + 1
            if place >= len(body):
                return True
            if body[place] != self.separator:
                raise ValueError(f'{body[place]!a} follows the " that ends a field')
            place += 1

    def _add(self, cell: str) -> None:
        self.width += 1
        if self.kept:
            self.cells.append(cell)


def read_delimited(
    numbered: Numbered, separator: str, again: Callable[[], Numbered]
) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, cells) of each row of a file, the header too; blank lines are none.

    A row of which a line was left out is left out, up to its end. ``again`` gives the same lines from the start, for a
    TSV that has to be looked through. Raises BadRow: quotation marks are not in order, or a TSV can be read in two ways.
    """
    kind = "TSV" if separator == "\t" else "CSV"
    quoted = None if kind == "TSV" else True
    row: _Row | None = None
    start = 0
    for number, line in numbered:
        if not isinstance(line, str):
            if quoted is None and line[0]:
                quoted = _is_quoted(again(), separator)
            row, start = _after(line, row, separator) if quoted else None, number
            continue
        if row is None:
            if not (body := _body(line)):
                continue
            if quoted is None and (body.startswith('"') or f'{separator}"' in body):
                quoted = _is_quoted(again(), separator)
            if not quoted:
                yield number, body.split(separator)
                continue
            row, start = _Row(separator), number
        try:
            whole = row.take(line)
        except ValueError as error:
            raise BadRow(start, f"not valid {kind}: {error}; {_RULE}") from None
        if whole:
            if not row.partial:
                yield start, row.cells
            row = None
    if row is not None:
        raise BadRow(start, f"not valid {kind}: a quoted field has no end; {_RULE}")


def _after(gap: Gap, row: _Row | None, separator: str) -> _Row | None:
    """What goes on after a line that was left out, where a quoted cell does."""
    return _Row(separator, kept=False, partial=True, _open=[]) if gap[row is not None] else None


def _body(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _is_quoted(numbered: Numbered, separator: str) -> bool:
    """Whether a TSV is to be read with quotation marks; see the module's table."""
    wide = width = 0  # of the header, line by line and with quotation marks
    uneven = broken = merged = (
        None  # the first line that speaks against the one, against the other, and against choosing
    )
    bare = sure = False
    row: _Row | None = None
    start, full = 0, True
    for number, line in numbered:
        if not isinstance(line, str):
            row, start = _after(line, row, separator), number
            continue
        if body := _body(line):
            cells = body.count(separator) + 1
            wide = wide or cells
            if cells != wide:
                uneven = uneven or (number, cells)
        if broken is not None or (row is None and not body):
            continue
        if row is None:
            row, start, full = _Row(separator, kept=False), number, True
        full &= not body or cells == wide
        try:
            whole = row.take(line)
        except ValueError as error:
            broken = start, str(error)
            continue
        if not whole:
            continue
        if row.partial:
            row = None
            continue
        if not width:
            width, sure = row.width, body.startswith('"')
        if row.width != width:
            broken = start, f"{row.width} fields, but the header has {width}"
        if row.lines > 1 and full:
            merged = merged or start
        bare, sure = bare or row.bare, sure or row.sure
        row = None
    if row is not None and broken is None:
        broken = start, "a quoted field has no end"
    return _decided(uneven, broken, merged, bare=bare, sure=sure, columns=wide)


def _decided(
    uneven: tuple[int, int] | None,
    broken: tuple[int, str] | None,
    merged: int | None,
    *,
    bare: bool,
    sure: bool,
    columns: int,
) -> bool:
    if uneven is None:
        if broken is not None or bare:
            return False
        if merged is None or sure:
            return True
        if columns > 1:
            return False
        raise BadRow(
            merged,
            'a field begins with " and another line ends with one: this is one field of several lines, or several fields '
            "with quotation marks of their own; write the file as JSON Lines",
        )
    line, cells = uneven
    if broken is not None:
        raise BadRow(
            line,
            f'{cells} fields, but the header has {columns}; with " as quotation marks, line {broken[0]} is wrong: '
            f"{broken[1]}. Mend the one line, or put fields that hold a tab or a newline between double quotes: {_RULE}",
        )
    if merged is not None and bare:
        raise BadRow(
            merged,
            f'a field begins with " and a later line ends it, but not every " of the file is a quotation mark, and line '
            f"{line} has {cells} fields where the header has {columns}; mend one of them: {_RULE}",
        )
    return True
