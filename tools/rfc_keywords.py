"""Count the requirement keywords (RFC 2119) of RFC texts by section: what an inventory has to account for.

    python tools/rfc_keywords.py rfc8945.txt …            one line for tests/data/normative/keywords.txt each
    python tools/rfc_keywords.py --sentences rfc8945.txt  the sentences, to read beside the inventory

MUST NOT, SHALL NOT and SHOULD NOT count as one keyword; MAY and OPTIONAL permit and are not counted.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

KEYWORD = re.compile(r"\b(?:MUST NOT|MUST|SHALL NOT|SHALL|SHOULD NOT|SHOULD|REQUIRED|NOT RECOMMENDED|RECOMMENDED)\b")
HEADING = re.compile(r"(?:Appendix )?((?:\d+|[A-Z])(?:\.\d+)*)(?:\.|:| -)?\s+\S")
PAGE_EDGE = re.compile(r".*\[Page \d+\]\s*|RFC \d+ .*\d{4}\s*|\f")
DEFINITION = re.compile(r"key\s?words|interpreted as described", re.IGNORECASE)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(section, paragraph), without page edges, contents and the sentence that defines the keywords."""
    section, paragraph = "-", []
    for line in [*text.replace("\f", "\n").splitlines(), ""]:
        if PAGE_EDGE.fullmatch(line):
            continue
        heading = HEADING.match(line)
        if heading and not re.search(r"\. ?\. ?\.|\.{3}", line):
            section = heading[1]
        elif line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield section, " ".join(paragraph)
            paragraph = []


def sentences(text: str) -> Iterator[tuple[str, str, int]]:
    """(section, sentence, keywords in it) of every sentence that has one."""
    for section, paragraph in sections(text):
        for sentence in re.split(r"(?<=[.;:])\s+(?=[A-Z(\"o])", paragraph):
            found = len(KEYWORD.findall(sentence))
            if found and not DEFINITION.search(sentence):
                yield section, sentence, found


def main() -> int:
    names = [name for name in sys.argv[1:] if name != "--sentences"]
    for name in names:
        counts: dict[str, int] = {}
        for section, sentence, found in sentences(Path(name).read_text(errors="replace")):
            counts[section] = counts.get(section, 0) + found
            if "--sentences" in sys.argv:
                print(f"{section} [{found}] {sentence}")
        if "--sentences" not in sys.argv:
            number = "".join(filter(str.isdigit, Path(name).stem))
            print(f"{number}: " + " ".join(f"{section}={count}" for section, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
