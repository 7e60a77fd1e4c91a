"""Words for people: progress, tables, and errors in one line."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from pipeline.base.errors import UserError

if TYPE_CHECKING:
    from rich.progress import TaskID


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a program to its exit status: 0, 2 with one line for a UserError, 130 for Ctrl-C."""
    try:
        main()
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: what was complete is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe left: nobody is there to be told
        sys.stderr.close()
        sys.exit(141)
    sys.exit(0)


class Bar:
    """A live bar on a terminal; elsewhere a plain line at each step."""

    def __init__(self, title: str, total: int, live: "Callable[[int, int, str], None] | None") -> None:
        self.title, self.total, self._live = title, total, live

    def show(self, done: int, note: str = "") -> None:
        """Moves the bar to `done` of `total`; `note` stands beside it."""
        if self._live:
            self._live(done, self.total, note)
        else:
            print(f"{self.title} {done}/{self.total}  {note}".rstrip(), flush=True)


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A progress bar over `total` steps, of which `done` are behind us."""
    if not sys.stdout.isatty():
        yield Bar(title, total, None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    whole = Column(no_wrap=True)
    columns = (
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=12, table_column=whole),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=whole),
        # The last to need room is the first to do without.
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Progress(*columns, expand=True) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")
        yield Bar(title, total, lambda at, whole, note: progress.update(task, completed=at, total=whole, note=note))


@contextmanager
def transfer() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar in bytes for each file fetched: what it yields takes name, bytes so far and bytes in all."""
    if not sys.stdout.isatty():
        yield _silent
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn()) as progress:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield show


def _silent(name: str, done: int, total: int | None) -> None:
    """Where no terminal watches, the line at the end is enough."""


def figures(values: Mapping[str, float]) -> str:
    """`{"loss": 79.312}` as `loss 79.31`, several of them in a row."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def number(value: float) -> str:
    """Four significant digits, without an exponent where a person would not write one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def warn(message: str) -> None:
    """One line on stderr, which a live bar lets pass above it."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Prints a table: the first column names the row, the others hold figures."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption=note or None, caption_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for name, *cells in rows:
        grid.add_row(str(name), *(number(cell) if isinstance(cell, int | float) else str(cell) for cell in cells))
    Console().print(grid)
