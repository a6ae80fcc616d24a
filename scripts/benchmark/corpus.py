"""The corpus: a real Nix store, built by Nix out of Debian packages, and environments that install from it."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess

import debian

# What the user of the environment installs.
ROOTS = """bash coreutils python3 nodejs git gcc-12 postgresql-15 postgresql-client-15 openjdk-17-jre-headless curl jq
    ripgrep vim-nox sqlite3 nginx-light openssh-client""".split()

# Each variant of the environment: what is installed, and which packages are of which other revision.
VARIANTS = {
    "base": (ROOTS, [], 1),
    "leaf": (ROOTS, ["ripgrep"], 2),
    "middle": (ROOTS, ["libssl3"], 2),
    "several": (ROOTS, ["ripgrep", "jq", "git", "nginx-light"], 2),
    "added": ([*ROOTS, "redis-tools"], [], 1),
    "removed": ([root for root in ROOTS if root != "vim-nox"], [], 1),
    "libc": (ROOTS, ["libc6"], 2),
}
# The same packages once more.
AGAIN = {name: f"{name}-again" for name, (_, changed, _) in VARIANTS.items() if changed}
VARIANTS |= {again: (VARIANTS[name][0], VARIANTS[name][1], 3) for name, again in AGAIN.items()}

# A store that does not lie at /nix is built for in a chroot, whatever `sandbox` says: hence the paths.
NIX_SETTINGS = """build-users-group =
sandbox = false
filter-syscalls = false
substitute = false
substituters =
max-jobs = 2
sandbox-paths = /bin /usr /lib /lib64? /etc/alternatives? {archives}
"""


class PathInfo:
    """What Nix's database knows of a store path."""

    def __init__(self, path, nar_hash, nar_size, references):
        self.path, self.nar_hash, self.nar_size, self.references = path, nar_hash, nar_size, references


class Store:
    """A Nix store with its own root, and environments beside it."""

    def __init__(self, root, environments):
        self.root, self.environments = root, environments
        self._infos = None

    def nix(self, *command, **options):
        """Runs a program of Nix's on this store; gives its standard output."""
        command = [command[0], "--store", str(self.root), *map(str, command[1:])]
        done = subprocess.run(
            command, env=self.nix_environment(), check=True, text=True, stdout=subprocess.PIPE, **options)
        return done.stdout

    def nix_environment(self):
        """The variables with which Nix's programs read this store's settings and no others."""
        config = self.root.parent / "nix-config"
        return {**os.environ, "NIX_CONF_DIR": str(config), "HOME": str(config)}

    def environment(self, name):
        """The directory with the environment's `.flox`."""
        return self.environments / name

    def installs(self, name):
        """The store paths that an environment installs."""
        manifest = (self.environment(name) / ".flox/env/manifest.toml").read_text()
        return re.findall(r'store-path = "([^"]+)"', manifest)

    def infos(self):
        """Everything in the store, by path."""
        if self._infos is None:
            lines = iter(self.nix("nix-store", "--dump-db").splitlines())
            self._infos = {}
            for path in lines:
                nar_hash, nar_size, _deriver, count = next(lines), int(next(lines)), next(lines), int(next(lines))
                self._infos[path] = PathInfo(path, nar_hash, nar_size, [next(lines) for _ in range(count)])
        return self._infos

    def closure(self, name):
        """The closure of an environment, sorted by path."""
        found, pending = set(), self.installs(name)
        while pending:
            path = pending.pop()
            if path not in found:
                found.add(path)
                pending.extend(self.infos()[path].references)
        return [self.infos()[path] for path in sorted(found)]

    def write_environment(self, name, installs):
        """Makes an environment that installs store paths: `installs` has the path for each install ID."""
        folder = self.environment(name) / ".flox/env"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "env.json").write_text('{"name":"bench","version":1}')
        lines = [f'"{install}".store-path = "{path}"\n' for install, path in installs.items()]
        (folder / "manifest.toml").write_text("version = 1\n\n[install]\n" + "".join(lines))


def the_store(work):
    """The corpus below `work`, which `build` has made."""
    return Store(work / "corpus/root", work / "corpus/environments")


def build(work):
    """Makes the corpus unless it is there: some 300 MB of packages are fetched, some 5 GB are written."""
    place = work / "corpus"
    packages = debian.closure(sorted({root for roots, _, _ in VARIANTS.values() for root in roots}))
    wanted = {name: [package.version, package.needs] for name, package in packages.items()}
    expression = pathlib.Path(__file__).with_name("corpus.nix").read_text()
    key = hashlib.sha256(json.dumps([wanted, VARIANTS, expression, NIX_SETTINGS]).encode()).hexdigest()
    stamp = place / "made-of"
    if stamp.exists() and stamp.read_text() == key:
        return
    if place.exists():
        # Nix takes the right to write from its store paths' directories; root needs none.
        shutil.rmtree(place)
    config = place / "nix-config"
    config.mkdir(parents=True)
    archives = work / "archives"
    debian.fetch(packages.values(), archives)
    (config / "nix.conf").write_text(NIX_SETTINGS.format(archives=archives))
    (config / "corpus.nix").write_text(expression)
    described = {
        name: {
            "version": re.sub(r"[^A-Za-z0-9+._-]", "-", package.version),
            "archive": str(package.archive),
            "sha256": debian.sha256(package.archive),
            "needs": package.needs,
        }
        for name, package in packages.items()
    }
    (config / "packages.json").write_text(json.dumps(described))
    variants = {
        name: {"roots": roots, "changed": changed, "revision": revision}
        for name, (roots, changed, revision) in VARIANTS.items()
    }
    (config / "variants.json").write_text(json.dumps(variants))

    store = the_store(work)
    store.root.mkdir()
    store.nix("nix-build", "--no-out-link", "-Q", "-A", "all", config / "corpus.nix", stderr=subprocess.DEVNULL)
    paths = json.loads(
        store.nix("nix-instantiate", "--eval", "--strict", "--json", "-A", "paths", config / "corpus.nix")
    )
    for variant, installs in paths.items():
        store.write_environment(variant, installs)
    stamp.write_text(key)
