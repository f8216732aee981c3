"""Write docs/rfc-coverage.md from the `rfc` markers of the tests; with --check, fail when it is stale.

A marker stands for a normative sentence that a test holds us to: `@pytest.mark.rfc("2136", "3.2.4")`.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "rfc-coverage.md"
TITLES = {
    "1034": "Domain names, concepts",
    "1035": "Domain names, implementation",
    "1982": "Serial number arithmetic",
    "1995": "IXFR",
    "1996": "NOTIFY",
    "2136": "Dynamic updates",
    "2181": "Clarifications",
    "2308": "Negative caching",
    "3597": "Unknown types",
    "4343": "Case insensitivity",
    "4592": "Wildcards",
    "5936": "AXFR",
    "6281": "Back to My Mac",
    "6672": "DNAME",
    "6886": "NAT-PMP",
    "6887": "PCP",
    "6891": "EDNS(0)",
    "7766": "DNS over TCP",
    "7858": "DNS over TLS",
    "8020": "NXDOMAIN",
    "8482": "Minimal ANY",
    "8764": "Long-Lived Queries",
    "8914": "Extended errors",
    "8945": "TSIG",
    "9664": "Update leases",
}


def markers(file: Path) -> list[tuple[str, str, str]]:
    """(RFC, section, test) of every marker in a file, module- and class-level ones included."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        decorated = (
            node.decorator_list if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
        )
        for call in (item for item in decorated if isinstance(item, ast.Call)):
            if ast.unparse(call.func) == "pytest.mark.rfc":
                words = [str(ast.literal_eval(argument)) for argument in call.args]
                found.append((words[0], words[1] if len(words) > 1 else "-", node.name))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            for call in (item for item in ast.walk(node.value) if isinstance(item, ast.Call)):
                if ast.unparse(call.func) == "pytest.mark.rfc":
                    words = [str(ast.literal_eval(argument)) for argument in call.args]
                    found.append((words[0], words[1] if len(words) > 1 else "-", file.stem))
    return found


def render() -> str:
    table: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for rfc, section, test in markers(file):
            table[rfc][section].append(f"`{file.relative_to(ROOT / 'tests').as_posix()}::{test}`")
    lines = ["# What the tests hold us to", "", "Made by `make coverage-table` from the tests' `rfc` markers.", ""]
    for rfc in sorted(table, key=int):
        lines += [f"## RFC {rfc} {TITLES.get(rfc, '')}".rstrip(), "", "| section | tests |", "|---|---|"]
        for section in sorted(table[rfc], key=_section_key):
            lines.append(f"| {section} | {', '.join(sorted(set(table[rfc][section])))} |")
        lines.append("")
    return "\n".join(lines)


def _section_key(section: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in section.split(".")]


def main() -> int:
    text = render()
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text() != text:
            print("docs/rfc-coverage.md is stale: make coverage-table", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
