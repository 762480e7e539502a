"""Tables on the terminal."""

from collections.abc import Collection, Sequence


def align(table: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Return rows of cells, all of one length, as lines with aligned columns.

    Args:
        table: The cells, row by row.
        right: Numbers of the columns that are aligned to the right.

    >>> align([["task", "n"], ["arc", "100"]], right={1})
    ['task    n', 'arc   100']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
