"""Tables in Markdown, as the reports of `benchmarks` have them."""

from collections.abc import Iterable, Sequence


def render_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, line))} |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def render_titled(title: str, legend: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table under a line of its title and what its columns are."""
    return f"**{title}**: {legend}.\n\n{render_table(heads, rows)}"
