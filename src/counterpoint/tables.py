"""Tables as people read them: one content for the terminal, Markdown, LaTeX, HTML, CSV and pandas."""

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from counterpoint.stats import Estimate

if TYPE_CHECKING:
    import pandas
    import rich.console

Cell = str | int | float | Estimate | None
"""What a table holds: a number with its interval is one cell; None where there is nothing, which never looks like 0."""

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """Named columns and rows of cells.

    ``forms`` maps a column to the format of its numbers, such as ``+.3f``; others get ``.3g``. ``note`` stands below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    forms: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), f"{self.title}: a row of another length"

    def text(self) -> list[list[str]]:
        """Every cell as it is shown."""
        return [[shown(cell, self.forms.get(name, ".3g")) for name, cell in self._named(row)] for row in self.rows]

    def _named(self, row: Sequence[Cell]) -> list[tuple[str, Cell]]:
        return list(zip(self.columns, row, strict=True))

    def _is_words(self, column: int) -> bool:
        return any(isinstance(row[column], str) for row in self.rows)

    def to_markdown(self) -> str:
        """A pipe table under its title; what Markdown or HTML would read as markup is escaped."""
        rules = [":---" if self._is_words(i) else "---:" for i in range(len(self.columns))]
        lines = [list(self.columns), rules, *self.text()]
        rows = [f"| {' | '.join(cells if cells is rules else map(_markdown, cells))} |" for cells in lines]
        note = ["", _markdown(self.note)] if self.note else []
        return "\n".join([f"**{_markdown(self.title)}**", "", *rows, *note])

    def to_latex(self) -> str:
        """A ``table`` with ``booktabs`` rules."""
        align = "".join("l" if self._is_words(i) else "r" for i in range(len(self.columns)))
        head, *rows = (" & ".join(map(_latex, cells)) + r" \\" for cells in [self.columns, *self.text()])
        caption = rf"\caption{{{_latex(self.title)}}}"
        body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join(
            [r"\begin{table}", caption, rf"\begin{{tabular}}{{{align}}}", *body, r"\end{tabular}", r"\end{table}"]
        )

    def to_html(self) -> str:
        """A ``<table>`` with everything escaped."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in cells) for cells in self.text())
        body = "".join(f"<tr>{cells}</tr>" for cells in rows)
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        caption = f"<caption>{html.escape(self.title)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"

    def to_records(self) -> list[dict[str, Any]]:
        """One dictionary per row with full numbers; an estimate gives ``NAME``, ``NAME_low`` and ``NAME_high``."""
        intervals = {
            name for i, name in enumerate(self.columns) if any(isinstance(row[i], Estimate) for row in self.rows)
        }
        return [
            {key: value for name, cell in self._named(row) for key, value in _values(name, cell, name in intervals)}
            for row in self.rows
        ]

    def to_frame(self) -> "pandas.DataFrame":
        """The same as a pandas frame."""
        import pandas

        return pandas.DataFrame(self.to_records())

    def to_csv(self) -> str:
        """The same as CSV with a header; nothing where a number is not known."""
        records = self.to_records()
        out = io.StringIO()
        writer = csv.DictWriter(out, list(records[0]) if records else list(self.columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return out.getvalue()

    def __rich__(self) -> "rich.console.Group":
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable()
        for i, name in enumerate(self.columns):
            # A number broken into two lines reads as two numbers; words may wrap.
            words = self._is_words(i)
            table.add_column(escape(name), justify="left" if words else "right", no_wrap=not words, overflow="fold")
        for cells in self.text():
            table.add_row(*map(escape, cells))
        # Not as title and caption, which would be broken at the width of the table.
        return Group(Text(self.title, "italic"), table, *([Text(self.note, "dim italic")] if self.note else []))

    def _repr_html_(self) -> str:
        return self.to_html()


def shown(cell: Cell, form: str = ".3g") -> str:
    """A cell as text: ``0.412 [0.370, 0.454]`` for an estimate in the form ``.3f``, a dash for nothing."""
    if cell is None:
        return NOTHING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        value = shown(cell.value, form)
        if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
            return value
        return f"{value} [{cell.low:{form}}, {cell.high:{form}}]"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:{form}}" if math.isfinite(cell) else NOTHING


def _values(name: str, cell: Cell, is_interval: bool) -> list[tuple[str, Any]]:
    if not is_interval:
        return [(name, cell)]
    if isinstance(cell, Estimate):
        return [(name, cell.value), (f"{name}_low", cell.low), (f"{name}_high", cell.high)]
    return [(name, cell), (f"{name}_low", None), (f"{name}_high", None)]


def _markdown(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))
