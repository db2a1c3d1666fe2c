"""Writes cluster/servers.lock anew: the jars that each server of the rig needs, found by Maven from the
roots that the lock itself names, with the checksum of what came. Needs `mvn`; run it to move to
another version, after changing a `root` line."""
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path("cluster/servers.lock")
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>trunkline</groupId><artifactId>{name}</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>{dependencies}</dependencies></project>"""
DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def jars_of(name: str, roots: list[str]) -> list[str]:
    """The lock's lines for one server."""
    with tempfile.TemporaryDirectory() as work:
        pom = Path(work, "pom.xml")
        dependencies = "".join(DEPENDENCY.format(*root.split(":")) for root in roots)
        pom.write_text(POM.format(name=name, dependencies=dependencies), encoding="utf-8")
        found = Path(work, "jars")
        subprocess.check_call(["mvn", "-B", "-q", "-f", str(pom), COPY, "-DincludeScope=runtime",
                               "-Dmdep.useRepositoryLayout=true", f"-DoutputDirectory={found}"])
        lines = []
        for jar in sorted(found.rglob("*.jar")):
            content = jar.read_bytes()
            lines.append(f"jar {jar.relative_to(found)} {len(content)} {hashlib.sha256(content).hexdigest()}")
        return lines


def main() -> int:
    comments, servers = [], {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comments.append(line)
        elif match := re.fullmatch(r"server (\S+)", line):
            roots = servers.setdefault(match[1], [])
        elif match := re.fullmatch(r"root (\S+)", line):
            roots.append(match[1])
    out = comments
    for name, roots in servers.items():
        out += ["", f"server {name}", *(f"root {root}" for root in roots), *jars_of(name, roots)]
    LOCK.write_text("\n".join(out) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
