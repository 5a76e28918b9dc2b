"""Small tables as text and as Markdown."""

from collections.abc import Mapping, Sequence

Cell = str | float | int | None


def text_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Aligned columns: the first to the left, the others to the right; None shows as `-`."""
    cells = [list(header), *([_format(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(_pad(cell, width, column) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The same as GitHub Markdown; pipes inside cells are escaped."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    cells = [list(header), rule, *([_format(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def compare(
    evaluations: Mapping[str, Mapping[str, float]], first: str = "overall"
) -> tuple[list[str], list[list[Cell]]]:
    """(header, rows) with one row per key and one column per evaluation, `first` on top.

    `evaluations` maps a column's title, e.g. "before" and "after", to `{question type: accuracy}`. Two
    columns get a third with their difference.
    """
    keys = list(dict.fromkeys(key for figures in evaluations.values() for key in figures))
    keys.sort(key=lambda key: (key != first, key))
    header = ["", *evaluations]
    rows: list[list[Cell]] = [[key, *(figures.get(key) for figures in evaluations.values())] for key in keys]
    if len(evaluations) == 2:
        header.append("change")
        for row in rows:
            both = row[1] is not None and row[2] is not None
            row.append(f"{row[2] - row[1]:+.3f}" if both else None)
    return header, rows


def _format(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)
