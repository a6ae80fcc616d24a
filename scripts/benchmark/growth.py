"""How time and memory grow with bytes and with store paths, on copies of the corpus under other names."""

import hashlib
import json
import os
import pathlib
import subprocess

from corpus import PathInfo, Store
from measure import OURS, Contender, Job, settle_memory
from place import remove

GIGABYTES = [1, 2, 4, 10]
PATHS = [200, 1000, 5000]
SMALL = 64 * 1024
# The second contender of each size.
UNCHANGED = f"{OURS}, nothing changed"
# The alphabet of Nix's hashes.
BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"


def store_path(name):
    """A store path whose hash is that of its name."""
    digest = hashlib.sha256(name.encode()).digest()
    return f"/nix/store/{''.join(BASE32[byte % 32] for byte in digest)}-{name}"


class Copies:
    """A store of hard-linked copies of the base environment's store paths, each with references among its own kind.

    What files say of other store paths is left as it is; the references are those that Nix's database records.
    """

    def __init__(self, source, store):
        self.source, self.store, self.infos = source, store, []
        (store.root / "nix/store").mkdir(parents=True)

    def copy(self, infos, number):
        """Adds a copy of these store paths, and one that refers to them all, whose path it gives."""
        renamed = {info.path: store_path(f"copy{number}-{info.path.partition('-')[2]}") for info in infos}
        for info in infos:
            self.link(info.path, renamed[info.path])
            references = [renamed[path] for path in info.references if path in renamed]
            self.infos.append(PathInfo(renamed[info.path], info.nar_hash, info.nar_size, references))
        return self.write_set(f"set{number}", sorted(renamed.values()))

    def write_set(self, name, paths):
        """Adds a store path that refers to others, and nothing else."""
        path = store_path(name)
        support = self.store.root / path[1:] / "nix-support"
        support.mkdir(parents=True)
        (support / "propagated").write_text("".join(f"{path}\n" for path in paths))
        nar = subprocess.run(
            ["nix-store", "--dump", support.parent], env=self.source.nix_environment(), check=True,
            stdout=subprocess.PIPE).stdout
        self.infos.append(PathInfo(path, f"sha256:{hashlib.sha256(nar).hexdigest()}", len(nar), paths))
        return path

    def link(self, old, new):
        """Has the files of a store path a second time."""
        source, target = self.source.root / old[1:], self.store.root / new[1:]
        subprocess.run(["cp", "-al", "-T", source, target], check=True)

    def register(self):
        """Tells Nix's database of everything."""
        text = "".join(
            "".join(f"{line}\n" for line in [
                info.path, info.nar_hash, info.nar_size, "", len(info.references), *info.references])
            for info in self.infos
        )
        self.store.nix("nix-store", "--load-db", input=text)


def build(place):
    """Makes the store and an environment for each size; gives the store and the sizes of each environment."""
    folder = place.work / "corpus"
    store = Store(folder / "growth", folder / "growth-environments")
    stamp = folder / "growth.json"
    names = [*(f"bytes-{count}" for count in GIGABYTES), *(f"paths-{count}" for count in PATHS)]
    if not stamp.exists() or list(json.loads(stamp.read_text())) != names:
        print("growth: copying the corpus", flush=True)
        remove(store.root)
        remove(store.environments)
        copies = Copies(place.store, store)
        bash = next(path for path in place.store.installs("base") if pathlib.Path(path).name[33:].startswith("bash-"))
        infos = place.store.infos()
        needed, pending = set(), [bash]
        while pending:
            path = pending.pop()
            if path not in needed:
                needed.add(path)
                pending.extend(infos[path].references)
        for path in sorted(needed):
            copies.link(path, path)
            copies.infos.append(infos[path])
        base = place.store.closure("base")
        sets = [copies.copy(base, number) for number in range(max(GIGABYTES))]
        for count in GIGABYTES:
            installs = {"bash": bash, **{f"set{n}": sets[n] for n in range(count)}}
            store.write_environment(f"bytes-{count}", installs)

        small = [info for info in base if info.nar_size <= SMALL]
        sets, number, total = [], 0, 0
        for count in PATHS:
            while total < count:
                part = small[: count - total - 1] or small[:1]
                sets.append(copies.copy(part, 1000 + number))
                number, total = number + 1, total + len(part) + 1
            installs = {"bash": bash, **{f"set{n}": path for n, path in enumerate(sets)}}
            store.write_environment(f"paths-{count}", installs)
        copies.register()
        points = {}
        for name in names:
            closure = store.closure(name)
            points[name] = {"bytes": sum(info.nar_size for info in closure), "paths": len(closure)}
        stamp.write_text(json.dumps(points))
        # The file system is busy with so many new links for a while, on a core that is not to be shared with it.
        os.sync()
        settle_memory()
    return store, json.loads(stamp.read_text())


def run_growth(place, bench):
    """Measures, into a pipe, from nothing and then with nothing changed."""
    store, points = build(place)
    for name, point in points.items():
        if not any(note["point"] == name for note in bench.results.notes("growth")):
            bench.results.add(note="growth", point=name, **point)
        command = f"{place.layerhold(name, '-f', '-', store=store)} | cat >/dev/null"
        # The second contender finds what the first has left.
        bench.run(Job(f"growth-{name}", [
            Contender(OURS, command, place.cold),
            Contender(UNCHANGED, command),
        ], 3))
