"""What was measured as Markdown tables and plots (PNG and SVG), from the JSON that `python -m bench --json` writes.

`python -m bench.report docs/performance/results.json` writes the plots and `results.md` beside it.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from bench import growth, latency

ORDER: Final = ("homing", "nsd", "knot", "bind", "powerdns")
COLOURS: Final = {"homing": "#c2410c", "nsd": "#2563eb", "knot": "#0d9488", "bind": "#6b7280", "powerdns": "#a855f7"}


def rate(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:,.0f}"


def rows_table(rows: dict[str, dict[str, Any]]) -> str:
    """Median a peer, with the spread over rounds; ours as a ratio to theirs, pair by pair within each round."""
    names = [name for name in ORDER if any(name in row["rates"] for row in rows.values())]
    lines = ["| work | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows.values():
        ours = row["rates"].get("homing")
        cells = []
        for name in names:
            found = row["rates"].get(name)
            if not found:
                cells.append("-")
                continue
            cell = f"{rate(statistics.median(found))}/s ({rate(min(found))}-{rate(max(found))})"
            if ours and name != "homing":
                cell += f", **{ratio(ours, found):.2f} x**"
            cells.append(cell)
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of each round, so that a machine that slows down meets both sides."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=False))


def latency_table(results: dict[str, Any]) -> str:
    lines = ["| what | p50 | p90 | p99 | worst |", "|---|---|---|---|---|"]
    named = {"llq": "change to LLQ event (UDP, no window)", "push": "change to DNS Push (TLS)"}
    measured = [(named[way], values) for way, values in results.get("events", {}).items()]
    beside = results.get("beside")
    if beside:
        per_second = beside["updates_per_second"][0]
        measured += [("query, idle server", beside["idle"])]
        measured += [(f"query beside {per_second:,.0f} updates/s", beside["loaded"])]
    for title, values in measured:
        found = latency.summary(values)
        lines.append(
            f"| {title} | " + " | ".join(f"{found[key]:.2f} ms" for key in ("p50", "p90", "p99", "worst")) + " |"
        )
    return "\n".join(lines)


def text(results: dict[str, Any]) -> str:
    """Everything as one Markdown page."""
    parts = [
        "# Figures",
        f"Measured by `make bench` on: {results['machine']}. Rates are medians (least-most) of {results['rounds']} "
        "rounds; **n x** is homing's rate as a multiple of theirs, median of the rounds.",
    ]
    if results.get("rows"):
        parts.append(rows_table(results["rows"]))
        parts.append("![rates](rates.svg)")
    if results.get("growth"):
        parts += [growth.table(results["growth"]), "![growth](growth.svg)"]
    if results.get("events") or results.get("beside"):
        parts += [latency_table(results), "![latency](latency.svg)"]
    return "\n\n".join(parts) + "\n"


def _save(figure: Any, directory: Path, name: str) -> None:
    for kind in ("png", "svg"):
        figure.savefig(directory / f"{name}.{kind}", dpi=110, metadata={"Date": None} if kind == "svg" else None)


def plot(results: dict[str, Any], directory: Path) -> None:
    """rates, growth, latency: a PNG and an SVG of each that was measured."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.hashsalt": "homing", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    rows = results.get("rows") or {}
    if rows:
        figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.5), layout="constrained")
        for number, row in enumerate(rows.values()):
            ours = row["rates"].get("homing")
            for name in ORDER[1:]:
                found = row["rates"].get(name)
                if found and ours:
                    axes.plot(ratio(ours, found), number, "o", color=COLOURS[name], markersize=7)
        axes.axvline(1, color="#c2410c", linewidth=1)
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows.values()])
        axes.invert_yaxis()
        axes.set_xlabel("homing's rate as a multiple of the peer's (right of the line: homing is faster)")
        handles = [plt.Line2D([], [], marker="o", linestyle="", color=COLOURS[name], label=name) for name in ORDER[1:]]
        axes.legend(handles=handles, frameon=False)
        axes.grid(axis="x", alpha=0.3)
        _save(figure, directory, "rates")
    by_figure = results.get("growth") or {}
    if by_figure:
        figure, grid = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
        grid[1][2].set_axis_off()
        for axes, name in zip(grid.flat, growth.FIGURES, strict=False):
            for peer in ORDER:
                values = by_figure.get(name, {}).get(peer)
                if values:
                    points = sorted((int(size), statistics.median(found)) for size, found in values.items())
                    axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[peer], label=peer)
            axes.set_xscale("log")
            if name.endswith("per_second"):
                axes.set_ylim(bottom=0)
            else:
                axes.set_yscale("log")
            axes.set_title(growth.TITLES[name], fontsize=9)
            axes.set_xlabel("records")
            axes.grid(alpha=0.3)
        grid[0][0].legend(frameon=False)
        _save(figure, directory, "growth")
    events, beside = results.get("events"), results.get("beside")
    if events or beside:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
        for way, values in (events or {}).items():
            left.hist([max(value, 0.01) for value in values], bins=60, histtype="step", label=way)
        left.set_title("change to event, ms", fontsize=9)
        left.legend(frameon=False)
        for name in ("idle", "loaded"):
            ordered = sorted((beside or {}).get(name, []))
            if ordered:
                right.plot(ordered, [(at + 1) / len(ordered) for at in range(len(ordered))], label=name)
        right.set_xscale("log")
        right.set_title("query round trips, ms: share of queries answered by then", fontsize=9)
        right.legend(frameon=False)
        _save(figure, directory, "latency")
    plt.close("all")


def write(results: dict[str, Any], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "results.md").write_text(text(results))
    plot(results, directory)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write(json.loads(source.read_text()), source.parent)
