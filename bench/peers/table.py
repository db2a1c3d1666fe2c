"""Prints the results of bench/peers/run or bench/baselines/run as Markdown tables.

    python3 bench/peers/table.py bench/results/peers
"""
import json
import re
import sys
from pathlib import Path

# What a table shows: its title, the metric's name, how its values are written, and of which files.
TABLES = [
    ("Server CPU for each message, ns", "server_cpu_per_message", "{:,.0f}", "echo-"),
    ("Ratio to the first, median (least to greatest)", "to", "", "echo-"),
    ("Server CPU for each delivery, ns", "server_cpu_per_delivery", "{:,.0f}", "fanout-"),
    ("20,000 messages a second: server CPU for each, ns", "server_cpu_per_message", "{:,.0f}", "rate-"),
    ("20,000 messages a second: p50, ms", "latency_p50", "{:.3f}", "rate-"),
    ("20,000 messages a second: p99, ms", "latency_p99", "{:.3f}", "rate-"),
    ("Resident bytes for each idle connection", "server_memory_per_connection", "{:,.0f}", "idle-"),
    ("Server CPU for each handshake, µs", "server_cpu_per_handshake", "{:.1f}", "idle-"),
    ("Resident bytes for each connection", "server_memory_per_connection", "{:,.0f}", "echo-"),
]


def contestants(run: dict) -> list[str]:
    """Names in the order of the command line."""
    return re.findall(r"--with (\S+?)=", run["command"])


def ratio(run: dict, name: str) -> str:
    """The ratio of CPU for each message to that of the first contestant."""
    prefix = f"{name}.to_{contestants(run)[0]}.server_cpu_per_message"
    value = [run["metrics"].get(prefix + part, {}).get("value") for part in ("", "_least", "_greatest")]
    if None in value:
        return ""
    return "{:.2f} ({:.2f} to {:.2f})".format(*value)


def cell(run: dict, name: str, metric: str, form: str) -> str:
    if name not in contestants(run):
        return ""
    if metric == "to":
        return ratio(run, name)
    value = run["metrics"].get(f"{name}.{metric}", {}).get("value")
    return "" if value is None else form.format(value)


def table(title: str, metric: str, form: str, runs: dict[str, dict]) -> None:
    names = list(dict.fromkeys(name for run in runs.values() for name in contestants(run)))
    rows = {name: [cell(run, name, metric, form) for run in runs.values()] for name in names}
    rows = {name: cells for name, cells in rows.items() if any(cells)}
    if not rows:
        return
    print(f"\n**{title}**\n")
    print("| | " + " | ".join(runs) + " |")
    print("|---" * (len(runs) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 64
    files = sorted(Path(sys.argv[1]).glob("*.json"))
    runs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    for title, metric, form, prefix in TABLES:
        chosen = {name: run for name, run in runs.items() if name.startswith(prefix)}
        for others in (False, True):
            part = {n: r for n, r in chosen.items() if n.endswith("-others") == others}
            if part:
                table(title, metric, form, part)
    for name, run in runs.items():
        rounds = run["parameters"].get("pairs")
        print(f"\n{name}: {rounds} rounds, revision {(run['git_revision'] or '')[:7]}")
        for problem in run["problems"]:
            print(f"  {problem}")
    return 0 if runs else 1


if __name__ == "__main__":
    sys.exit(main())
