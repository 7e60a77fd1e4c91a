"""What programs say: progress bars, tables, numbers, how long they took, and errors in one line."""

import atexit
import errno
import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

from pipeline import STARTED
from pipeline.base import terminal
from pipeline.base.addresses import hide
from pipeline.base.errors import UserError

_signals: list[int] = []  # that have come, to end this process


def run(main: Callable[[], None], timed: bool = True) -> NoReturn:
    """Runs a program and exits: with 0, with 2 and one line for a UserError, with 130 for Ctrl-C, 143 for SIGTERM.

    timed: whether it says at its end how long it took.
    """
    atexit.register(gc.freeze)  # a last collection of torch's and MLflow's objects would take a second
    try:
        signal.signal(signal.SIGTERM, _terminated)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _terminated)
        terminal.spell_out()
        sys.unraisablehook = _not_raised
        if "DVC_STAGE" in os.environ:
            _end_with_parent()
        main()
        if timed:
            say_seconds(Path(sys.argv[0]).stem)
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is done: from here on nothing would catch the exception
    except KeyboardInterrupt as stop:
        _interrupted(stop.args[0] if stop.args else signal.SIGINT)
    except Exception as error:
        if _signals:  # a library made another error of it: numpy's comparisons do
            _interrupted(_signals[-1])
        if isinstance(error, BrokenPipeError):  # the program that reads our output has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python's own last flush would fail, with another status
            sys.stderr.close()
            sys.exit(141)
        if (words := str(error) if isinstance(error, UserError) else _of_the_machine(error)) is None:
            raise
        sys.stdout.flush()
        print(f"{terminal.painted('error:', 'red', sys.stderr)} {_in_a_line(words)}", file=sys.stderr)
        sys.exit(2)
    finally:
        _signals.clear()
    sys.exit(0)


def _interrupted(number: int) -> NoReturn:
    print("\ninterrupted: complete results are kept", file=sys.stderr)
    atexit.register(_end_in_silence)
    sys.exit(128 + number)


def _end_in_silence() -> None:
    """Exit handlers may fail while the thread that sends to MLflow is at work: nobody needs to read of that."""
    sys.excepthook = lambda *_: None
    sys.unraisablehook = lambda _: None


def _not_raised(what: "sys.UnraisableHookArgs") -> None:
    """Where Python can't raise an exception, such as in a callback, it drops it: a signal must come again then."""
    if isinstance(what.exc_value, KeyboardInterrupt):
        number = what.exc_value.args[0] if what.exc_value.args else signal.SIGINT
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(what)


def _end_if_asked() -> None:
    """A library may take the KeyboardInterrupt for a fault of its own and go on: the next step of a bar raises it."""
    if _signals:
        raise KeyboardInterrupt(_signals[-1])


def _end_with_parent() -> None:
    """A DVC that was killed leaves its stage at work, whose outputs the next `dvc repro` would get: it then ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _of_the_machine(error: Exception) -> str | None:
    """What to say of a full or read-only disk, or of too little memory; None for any other error."""
    if isinstance(error, OSError):
        part = re.sub(r"\.([^/]+)\.\d+\.part$", r"\1", str(error.filename or ""))  # as files.replacing names it
        place = f"{part or 'a file'} can't be written"
        remedies = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space"}
        remedies |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the folder writable")
        nowhere = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG)
        if error.errno in nowhere or (error.errno == errno.ENOENT and part != str(error.filename)):
            return f"{place} ({error.strerror}): name another place"
        if error.errno in remedies:
            rest = "then run the same command again; what was complete is kept"
            return f"{place} ({error.strerror}): {remedies[error.errno]}, {rest}"
        return None
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory|size calculation overflow", text):
        return f"too little memory ({text[:150] or 'MemoryError'}): choose smaller sizes in params.yaml"
    return None


def _terminated(number: int, _frame: object) -> NoReturn:
    """Ends the program like Ctrl-C, so that it finishes what is open."""
    _signals.append(number)
    raise KeyboardInterrupt(number)


def say_seconds(program: str) -> None:
    """Says how long this process has taken, from its start: `train took 83 s`."""
    seconds = time.monotonic() - STARTED
    print(f"{program} took {seconds:.{0 if seconds >= 10 else 1}f} s")


def say(text: str, indent: str = "") -> None:
    """Prints a paragraph. On a terminal it breaks between words, and all lines but the first are indented."""
    print(terminal.wrapped(text, indent) if sys.stdout.isatty() else text)


class Step(Protocol):
    def __call__(self, at: int, note: str, live: str = "") -> None: ...


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Step]:
    """A live bar over `total` steps, of which `done` are done; where there is no terminal, a line for each new note.

    Yields a function of the steps done, of a note beside the bar, and of another that a log leaves out.
    """
    if not sys.stdout.isatty():
        said = [""]

        def line(at: int, note: str, live: str = "") -> None:
            _end_if_asked()
            if (note and note != said[0]) or not (note or live):
                print(f"{title} {at}/{total}  {note}".rstrip(), flush=True)
            said[0] = note or said[0]

        yield line
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

        def step(at: int, note: str, live: str = "") -> None:
            _end_if_asked()
            progress.update(task, completed=at, note=live or note)

        yield step


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
    print(f"{terminal.painted('warning:', 'yellow', sys.stderr)} {_in_a_line(message)}", file=sys.stderr, flush=True)


def _in_a_line(text: str) -> str:
    """The text without passwords, line breaks and control characters, which file names and servers may bring."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in hide(text))


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "", best: Collection[int] = ()
) -> None:
    """Prints a table. The first column names the row, the others hold figures; best: indices of rows in colour.

    A table that is wider than the terminal breaks its headings after `_` and `/`. If it is still wider, it goes on
    below with the columns that are left, so that no figure is cut.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    cells = [[terminal.spelled(number(cell)) for cell in row] for row in rows]
    headings = [terminal.spelled(column) for column in columns]
    if sum(_widths(headings, cells)) + EDGE > console.width:
        headings = [heading.replace("_", "_\n").replace("/", "/\n") for heading in headings]
    print(terminal.painted(terminal.wrapped(title), "bold", sys.stdout))
    for group in _groups(_widths(headings, cells), console.width):
        made = Table(box=box.SIMPLE_HEAD)
        for index in group:
            made.add_column(headings[index], justify="left" if index == 0 else "right", no_wrap=True)
        for place, row in enumerate(cells):
            made.add_row(*(row[index] for index in group), style="bold green" if place in best else None)
        console.print(made)
    if note:
        print(f"{terminal.wrapped(note)}\n")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


EDGE = 1  # characters of a table outside its columns


def _widths(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """Characters of each column, with the space around it."""
    columns = zip(headings, *cells, strict=True)
    return [3 + max(len(line) for text in column for line in text.split("\n")) for column in columns]


def _groups(widths: Sequence[int], most: int) -> list[list[int]]:
    """Columns in as many tables as the width needs. Each table begins with the first column."""
    groups, room = [[0]], most - widths[0] - EDGE
    for index, width in enumerate(widths[1:], 1):
        if width > room and len(groups[-1]) > 1:
            groups.append([0])
            room = most - widths[0] - EDGE
        groups[-1].append(index)
        room -= width
    return groups
