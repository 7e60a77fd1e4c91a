"""What the terminal shows: progress bars, tables, numbers, and errors in one line."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from pipeline.base.errors import UserError

if TYPE_CHECKING:
    from rich.progress import TaskID


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a program and exits: with 0, with 2 and one line for a UserError, with 130 for Ctrl-C, 143 for SIGTERM."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        main()
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("\ninterrupted: complete results are kept", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:  # the program that reads our output has ended
        sys.stderr.close()
        sys.exit(141)
    sys.exit(0)


def _terminated(number: int, _frame: object) -> NoReturn:
    """Ends the program like Ctrl-C, so that it finishes what is open."""
    raise KeyboardInterrupt(number)


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A live bar over `total` steps, of which `done` are done; where there is no terminal, one line per step.

    Yields a function of the steps done and of a note beside the bar.
    """
    if not sys.stdout.isatty():
        yield lambda at, note: print(f"{title} {at}/{total}  {note}".rstrip(), flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    whole = Column(no_wrap=True)
    columns = (
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=12, table_column=whole),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=whole),
        # On a narrow terminal the note is cut, and nothing else.
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Progress(*columns, expand=True) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")
        yield lambda at, note: progress.update(task, completed=at, note=note)


@contextmanager
def transfer() -> Iterator[Callable[[str, int, int | None], None]]:
    """Progress bars for downloads. Yields a function of a file's name, its bytes so far, and its bytes in all."""
    if not sys.stdout.isatty():
        yield lambda *_: None
        return
    from rich.progress import Progress

    with Progress() as progress:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield show


def figures(values: Mapping[str, float]) -> str:
    """`{"loss": 79.312, "kl": 30.1}` as `loss 79.31  kl 30.1`."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def number(value: object) -> str:
    """A number with four significant digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def warn(message: str) -> None:
    """Prints one line on stderr, above a live bar."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Prints a table. The first column names the row, the others hold figures.

    A table that is wider than the terminal breaks its headings after `_` and `/`.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [[number(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    console = Console()
    if sum(widths) + 3 * len(widths) > console.width:
        columns = [column.replace("_", "_\n").replace("/", "/\n") for column in columns]
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption=note or None, caption_justify="left")
    for index, heading in enumerate(columns):
        made.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    for row in cells:
        made.add_row(*row)
    console.print(made)
