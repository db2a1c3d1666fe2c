"""House rules that no linter knows. Each message names the cure."""
import re
import subprocess
import sys
from pathlib import Path

LINES_MAX = 800
UNSAFE_HOME = "edge/src/ring/"
BANNED = [
    (re.compile(r"\b(todo|unimplemented)!\("), "build it, or refuse it with a clear error"),
    (re.compile(r"\b(TODO|FIXME|XXX)\b"), "do it now, or write an issue"),
    (re.compile(r"#\[ignore"), "a test that is skipped proves nothing: make it run or delete it"),
]
# In the languages whose runners spell it so.
SKIPPED = (re.compile(r"pytest\.mark\.skip|\.skip\("), "a test that is skipped proves nothing")


def main() -> int:
    files = [Path(f) for f in subprocess.check_output(["git", "ls-files"], text=True).splitlines()]
    problems = []
    for path in files:
        if path.suffix not in {".rs", ".js", ".mjs", ".py", ".css", ".html"} or path.name == "tidy.py":
            continue
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if len(lines) > LINES_MAX:
            problems.append(f"{path}: {len(lines)} lines: split it where a reader would")
        for number, line in enumerate(lines, 1):
            for pattern, cure in BANNED if path.suffix == ".rs" else [*BANNED, SKIPPED]:
                if pattern.search(line):
                    problems.append(f"{path}:{number}: {pattern.pattern}: {cure}")
            if path.suffix == ".rs" and re.search(r"\bunsafe\s*(\{|fn|impl)", line):
                if not str(path).startswith(UNSAFE_HOME):
                    problems.append(f"{path}:{number}: unsafe outside {UNSAFE_HOME}")
                elif "unsafe fn" not in line and not any(
                        "SAFETY:" in before for before in lines[max(0, number - 8):number]):
                    problems.append(f"{path}:{number}: unsafe without a SAFETY comment")
        if path.suffix == ".rs" and path.name in {"lib.rs", "mod.rs", "main.rs"} and not text.startswith("//!"):
            problems.append(f"{path}: a module begins with what it is for (//!)")
    for problem in problems:
        print(problem)
    print(f"{len(files)} files looked at")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
