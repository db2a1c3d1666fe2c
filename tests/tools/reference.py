"""Compares docs/reference/trunkline.toml with what `trunkline config default` prints.

The binary is $TRUNKLINE_BIN, or else target/debug/trunkline. `--write` brings the page up to date."""
import difflib
import os
import subprocess
import sys
from pathlib import Path

PAGE = Path("docs/reference/trunkline.toml")


def main() -> int:
    binary = os.environ.get("TRUNKLINE_BIN", "target/debug/trunkline")
    if not Path(binary).is_file():
        print(f"{binary} is missing: cargo build -p trunkline-cli")
        return 1
    printed = subprocess.check_output([binary, "config", "default"], text=True)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(printed, encoding="utf-8")
        return 0
    kept = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if kept == printed:
        print(f"{PAGE} is what the binary prints")
        return 0
    sys.stdout.writelines(difflib.unified_diff(
        kept.splitlines(keepends=True), printed.splitlines(keepends=True), str(PAGE), "config default"))
    print(f"{PAGE} is stale: python3 tests/tools/reference.py --write")
    return 1


if __name__ == "__main__":
    sys.exit(main())
