"""Write docs/rfc-coverage.md from the `rfc` markers of the tests; with --check, fail when it is stale.

A marker stands for a normative sentence that a test holds us to: `@pytest.mark.rfc("2136", "3.2.4")`. The inventory of
an RFC's sentences (tools/rfc_inventory.py) is its table, what is not claimed included.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

from tools.rfc_inventory import Sentence, sentences

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
    "2782": "SRV",
    "3007": "Secure updates",
    "3597": "Unknown types",
    "4034": "DNSSEC records",
    "4035": "DNSSEC protocol",
    "4343": "Case insensitivity",
    "4592": "Wildcards",
    "4703": "Names from DHCP",
    "5936": "AXFR",
    "6281": "Back to My Mac",
    "6604": "RCODE of an alias",
    "6672": "DNAME",
    "6886": "NAT-PMP",
    "6887": "PCP",
    "6891": "EDNS(0)",
    "7766": "DNS over TCP",
    "7828": "edns-tcp-keepalive",
    "7830": "EDNS padding",
    "7858": "DNS over TLS",
    "7873": "Cookies",
    "8020": "NXDOMAIN",
    "8467": "Padding policies",
    "8482": "Minimal ANY",
    "8490": "Stateful operations",
    "8764": "Long-Lived Queries",
    "8765": "DNS Push",
    "8914": "Extended errors",
    "8945": "TSIG",
    "9018": "Server cookies",
    "9103": "Transfers over TLS",
    "9432": "Catalog zones",
    "9460": "SVCB and HTTPS",
    "9471": "Glue and truncation",
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
    lines = [
        "# What the tests hold us to",
        "",
        "Made by `make coverage-table` from the tests' `rfc` markers and the inventory of each RFC's normative",
        "sentences in our words ([tests/data/normative](../tests/data/normative)). A test fails when a sentence names",
        "a test that is not there or not marked so, when a MUST or SHOULD of the text is missing, or when a marked",
        "RFC has no inventory.",
        "",
    ]
    for rfc in sorted(table, key=int):
        lines += [f"## RFC {rfc} {TITLES.get(rfc, '')}".rstrip(), ""]
        lines += _of_inventory(sentences(rfc), table[rfc])
        lines.append("")
    return "\n".join(lines)


def _of_inventory(listed: list[Sentence], marked: dict[str, list[str]]) -> list[str]:
    """Sentence by sentence: asserted ones, those that are not claimed, and what else is marked."""
    asserted = [item for item in listed if item.tests]
    others = [item for item in listed if not item.tests]
    lines = [f"Sentences: {len(asserted)} asserted, {len(others)} not claimed.", ""]
    lines += ["| section | sentence | tests |", "|---|---|---|"]
    lines += [
        f"| {item.section} | {item.rule} | {', '.join(f'`{test}`' for test in item.tests)} |" for item in asserted
    ]
    if others:
        lines += ["", "| section | not claimed | why |", "|---|---|---|"]
        lines += [f"| {item.section} | {item.rule} | {item.reason} |" for item in others]
    named = {(item.section, test) for item in asserted for test in item.tests}
    rest = [
        f"{section} {test}"
        for section, tests in _in_order(marked)
        for test in sorted(set(tests))
        if not {(section, test.strip("`")), (section, test.strip("`").split("::")[1])} & named
    ]
    if rest:
        lines += ["", f"Marked besides: {', '.join(rest)}."]
    return lines


def _in_order(marked: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """By section, appendices last."""
    return sorted(marked.items(), key=lambda item: [(not part.isdigit(), part.zfill(4)) for part in item[0].split(".")])


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
