"""Checks that every file that README.md and docs/ speak of is there: paths in backquotes that begin at
the root, and the targets of relative links and pictures."""
import re
import subprocess
import sys
from pathlib import Path

# `core/src/engine/send.rs`, `docs/adr/`: what is in backquotes and has a slash, but not in front.
QUOTED = re.compile(r"`([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*/?)`")
LINK = re.compile(r"(?:\]\(|src=\")([^)\s#\"]+)(?:#[^)\s]*)?[)\"]")
WEB = re.compile(r"^[a-z]+:")
# Made by a build: not in a fresh clone.
BUILT = ("target/",)
# Names that are files of this tree, wherever they begin. Others count when they begin in one of its folders.
OURS = (".rs", ".md", ".toml", ".py", ".mjs", ".js", ".proto", ".conf", ".c")


def tracked() -> tuple[set[str], set[str]]:
    """Files that git knows or would add, and the directories that hold them."""
    listing = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], text=True)
    files = {name for name in listing.splitlines() if Path(name).exists()}
    folders = {str(parent) for name in files for parent in Path(name).parents}
    return files, folders


def missing_in(page: Path, files: set[str], folders: set[str]) -> list[str]:
    roots = {folder for folder in folders if "/" not in folder and folder != "."}
    problems = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        for path in QUOTED.findall(line):
            name = path.rstrip("/")
            if "/" not in path or path.startswith(BUILT):
                continue
            if path.split("/")[0] not in roots and not path.endswith(OURS):
                continue
            if name not in files and name not in folders:
                problems.append(f"{page}:{number}: `{path}` does not exist")
        for target in LINK.findall(line):
            if WEB.match(target):
                continue
            there = (page.parent / target).resolve()
            if not there.exists():
                problems.append(f"{page}:{number}: the link to {target} leads nowhere")
    return problems


def main() -> int:
    files, folders = tracked()
    pages = sorted(Path(name) for name in files
                   if name == "README.md" or name.startswith("docs/") and name.endswith(".md"))
    problems = [problem for page in pages for problem in missing_in(page, files, folders)]
    for problem in problems:
        print(problem)
    print(f"{len(pages)} pages looked at")
    return 1 if problems or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
