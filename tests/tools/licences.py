"""Refuses a dependency whose licence is not on the list, or that names none."""
import json
import re
import subprocess
import sys

ALLOWED = {
    "MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause",
    "BSL-1.0", "ISC", "MPL-2.0", "Unicode-3.0", "Zlib", "0BSD", "Unlicense", "CC0-1.0", "CDLA-Permissive-2.0",
}


def satisfied(expression: str) -> bool:
    """Whether an SPDX expression can be met with ALLOWED: any side of OR, all sides of AND."""
    text = expression.replace("/", " OR ")
    tokens = re.findall(r"\(|\)|[A-Za-z0-9.+-]+(?: WITH [A-Za-z0-9.+-]+)?", text)
    position = 0

    def either():
        nonlocal position
        result = both()
        while position < len(tokens) and tokens[position] == "OR":
            position += 1
            right = both()
            result = result or right
        return result

    def both():
        nonlocal position
        result = one()
        while position < len(tokens) and tokens[position] == "AND":
            position += 1
            right = one()
            result = result and right
        return result

    def one():
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "(":
            result = either()
            position += 1
            return result
        return token in ALLOWED

    return either()


def main() -> int:
    metadata = json.loads(subprocess.check_output(
        ["cargo", "metadata", "--format-version", "1", "--locked"], text=True))
    bad = []
    for package in metadata["packages"]:
        licence = package.get("license")
        if not licence or not satisfied(licence):
            bad.append(f"{package['name']} {package['version']}: {licence or 'no licence named'}")
    for line in bad:
        print("licence not allowed:", line)
    print(f"{len(metadata['packages'])} packages looked at")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
