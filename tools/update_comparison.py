"""Write docs/update-comparison.md: the same updates sent to homing, BIND and Knot DNS, and what each made of them."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.update_cases import CONTENT, cases
from tests.support.update_comparison import SERVERS, Compared, Result, compare, sections, why

TARGET = Path(__file__).parent.parent / "docs" / "update-comparison.md"
_HEAD = """\
# The same updates to homing, BIND and Knot DNS

Made by `make compare` from the messages of `tests/support/update_cases.py`: {count} updates, each signed with an
administrator's key and sent by TCP to a zone of its own on each server ({versions}), which begins with serial 1000 and

```
{content}
```

A cell tells the RCODE, what left the zone (−) and what came into it (+), and how far the serial moved; `=` is the same
as homing. {equal} of {count} end the same on all three, {bind} the same on homing and BIND, {knot} on homing and Knot
DNS. The last column names the row of [deviations.md](deviations.md) that gives the reason.
"""


def _version(program: str) -> str:
    text = subprocess.run([f"/usr/sbin/{program}", "-V"], capture_output=True, check=True).stdout.decode()
    words = text.splitlines()[0].replace("-Debian", "").split()
    return f"BIND {words[1]}" if program == "named" else f"Knot DNS {words[-1]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _row(item: Compared) -> str:
    ours, *others = (item.results[name] for name in SERVERS)
    cells = [_cell(item.case.title), _cell(ours.text), *(_other(ours, result) for result in others)]
    return f"| {' | '.join(cells)} | {why(item) if item.differs else ''} |"


def _other(ours: Result, theirs: Result) -> str:
    return "=" if ours.key == theirs.key else _cell(theirs.text)


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        compared = compare(Path(directory), cases(), lambda line: print(line, file=sys.stderr))
    ours, bind, knot = SERVERS
    parts = [
        _HEAD.format(
            count=len(compared),
            versions=", ".join(_version(program) for program in (bind, knot)),
            content="\n".join(f"{owner:9} {ttl} {rtype} {rdata}" for owner, ttl, rtype, rdata in CONTENT),
            equal=sum(not item.differs for item in compared),
            bind=sum(item.results[ours].key == item.results[bind].key for item in compared),
            knot=sum(item.results[ours].key == item.results[knot].key for item in compared),
        )
    ]
    for group, items in sections(compared):
        parts.append(f"\n## {group}\n\n| update | homing | BIND | Knot DNS | why |\n|---|---|---|---|---|\n")
        parts.extend(f"{_row(item)}\n" for item in items)
    TARGET.write_text("".join(parts))
    unexplained = [item for item in compared if item.differs and not why(item)]
    for item in unexplained:
        print(f"unexplained: {item.case.group}, {item.case.title}", file=sys.stderr)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
