"""The table of all settings in docs/operations.md, written from the code.

python -m service.settings_table            write it   (make report)
python -m service.settings_table --check    only compare; exit 1 if it differs
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.settings import PREFIX, Settings
from weightgen.files.storage import write_file

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"
UNITS = ("seconds", "bytes", "threads")
COMMAND = "python -m service.settings_table"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table or compare it, and return the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if docs/operations.md differs")
    options = parser.parse_args(argv)
    text = PAGE.read_text()
    if (updated := put_table(text)) == text:
        return 0
    if options.check:
        print(f"docs/operations.md does not show the settings of the code; run: {COMMAND}", file=sys.stderr)  # noqa: T201
        return 1
    write_file(PAGE, updated.encode())
    print("docs/operations.md shows the settings of the code")  # noqa: T201
    return 0


def put_table(text: str) -> str:
    """The page with the table as the code has it between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert before and after, "docs/operations.md has lost the markers of its table of settings"
    return f"{before}{BEGIN}\n{render_settings()}\n{END}{after}"


def render_settings() -> str:
    """Every setting in Markdown: variable, default, unit, description."""
    lines = ["| variable | default | unit | what it is |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = _render_default(field.get_default(call_default_factory=True))
        description = (field.description or "").replace("|", r"\|")
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {_unit_of(name)} | {description} |")
    return "\n".join(lines)


def _unit_of(name: str) -> str:
    """What the end of the name says of its unit; nothing for a setting that is no number of something."""
    quantity, per, whose = name.partition("_per_")
    unit = quantity.rpartition("_")[2]
    if unit not in UNITS and not name.startswith("max_"):
        return ""
    return f"{unit} per {whose}".replace("_", " ") if per else unit


def _render_default(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float) and value >= 2**20 and value % 2**20 == 0:
        return f"`{int(value)}` ({int(value) // 2**20} MiB)"
    if isinstance(value, float) and value == int(value):
        return f"`{int(value)}`"
    if isinstance(value, tuple | list | set | frozenset):
        return f"`{','.join(map(str, value))}`" if value else "empty"
    return f"`{value}`"


if __name__ == "__main__":
    sys.exit(main())
