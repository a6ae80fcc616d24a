"""Debian's package index: which packages an environment needs, and their archives."""

import glob
import hashlib
import re
import subprocess


class Package:
    """A package of the index, and the packages of the same environment that it depends on."""

    def __init__(self, name, version, wanted):
        self.name, self.version, self.wanted = name, version, wanted
        self.needs = []
        self.archive = None


def index():
    """All packages of this machine's lists, by name, and who provides what. Needs an `apt-get update` before it."""
    packages, provided = {}, {}
    for path in sorted(glob.glob("/var/lib/apt/lists/*_Packages*")):
        text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], capture_output=True, check=True).stdout
        for stanza in text.decode().split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.M))
            name = fields.get("Package")
            if name is None or name in packages:
                continue
            wanted = ", ".join(filter(None, [fields.get("Pre-Depends"), fields.get("Depends")]))
            packages[name] = Package(name, fields["Version"], wanted)
            for virtual in re.findall(r"([a-z0-9+.-]+)(?: \([^)]*\))?", fields.get("Provides", "")):
                provided.setdefault(virtual, name)
    if not packages:
        raise SystemExit("scripts/bench: no package lists: run apt-get update")
    return packages, provided


def closure(roots):
    """The packages that `roots` need, themselves included, each behind those it needs.

    Debian's dependencies may form cycles, Nix's references cannot: an edge that would close a cycle is left out.
    """
    packages, provided = index()
    done, entered = {}, set()

    def dependencies(package):
        for alternatives in filter(None, (part.strip() for part in package.wanted.split(","))):
            for alternative in alternatives.split("|"):
                name = re.match(r"[a-z0-9+.-]+", alternative.strip()).group(0)
                name = name if name in packages else provided.get(name)
                if name:
                    yield name
                    break

    def visit(name):
        entered.add(name)
        package = packages[name]
        for needed in dependencies(package):
            if needed not in entered:
                visit(needed)
            if needed in done and needed not in package.needs:
                package.needs.append(needed)
        done[name] = package

    for root in roots:
        if root not in entered:
            visit(root)
    return done


def fetch(packages, folder):
    """Has the archive of each package in `folder`, and says where."""
    folder.mkdir(parents=True, exist_ok=True)

    def found(package):
        version = package.version.replace(":", "%3a")
        return next(iter(sorted(folder.glob(f"{glob.escape(package.name)}_{glob.escape(version)}_*.deb"))), None)

    missing = [f"{package.name}={package.version}" for package in packages if not found(package)]
    if missing:
        # apt's own user may not write where root keeps its work.
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *missing]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for package in packages:
        package.archive = found(package)


def sha256(file):
    """The SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
