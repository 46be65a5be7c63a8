"""Tables in Markdown for the reports of `benchmarks`."""

from collections.abc import Iterable, Sequence


def render_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, line))} |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def render_titled(title: str, legend: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table below a line with its title and a legend of its columns."""
    return f"**{title}**: {legend}.\n\n{render_table(heads, rows)}"
