"""Tables as text, for the `__str__` of results, and in Markdown."""

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.text import Text


def as_text(shown: RenderableType, *notes: str, width: int = 110) -> str:
    """What rich prints in so many columns, without colours, and a line per note below it."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(shown, *map(Text, notes), sep="\n")
    return capture.get()


def as_markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> str:
    r"""A table in GitHub's Markdown; the last `numbers` columns are aligned to the right.

    >>> print(as_markdown(["name", "bits"], [["a|b", "1"]], numbers=1))
    | name | bits |
    | --- | ---: |
    | a\|b | 1 |
    """
    rules = ["---"] * (len(columns) - numbers) + ["---:"] * numbers
    cells = ([cell.replace("|", r"\|").replace("\n", "<br>") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rules, *cells))
