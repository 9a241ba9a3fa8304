"""Tables as text, for the `__str__` of results."""

from rich.console import Console
from rich.table import Table


def as_text(table: Table, *notes: str) -> str:
    """The table in 110 columns, and a line per note below it."""
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table)
        for note in notes:
            console.print(note, markup=False, highlight=False)
    return capture.get()
