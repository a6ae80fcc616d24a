"""What the figures belong to: the commit, the day, the machine in general words, the peers' versions."""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess

from place import REPOSITORY

PEERS = """tar coreutils openssl zstd pigz libdeflate-tools python3 docker.io containerd podman buildah skopeo umoci
    docker-registry nix-bin""".split()


def about(place):
    """A description, to be written down when the first figure is."""
    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(place),
        "peers": [f"{name} {version(name)}" for name in PEERS],
    }


def commit():
    """The commit that the program was built from, and whether its sources differ from that."""
    git = lambda *words: subprocess.run(
        ["git", "-C", REPOSITORY, *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock")
    return git("rev-parse", "--short=10", "HEAD") + (" with changes that are not committed" if changed else "")


def machine(place):
    """The machine in general words."""
    flags = set(next(
        (line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat"))),
        "",
    ).split())
    has = lambda name, *wanted: name if flags & set(wanted) else f"no {name}"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    file_system = subprocess.run(
        ["findmnt", "-no", "FSTYPE", "-T", place.work], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {has('SHA instructions', 'sha_ni', 'sha2')}, "
        f"{has('AVX-512', 'avx512f')}), {memory / 2**30:.0f} GiB of memory, {file_system}"
    )


def version(package):
    """The version of a Debian package, or what the program of that name says of itself, which may be below target."""
    query = ["dpkg-query", "-W", "-f", "${Version}", package]
    done = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode == 0:
        return done.stdout
    unpacked = REPOSITORY / "target" / package / "usr/bin" / package
    program = shutil.which(package) or (unpacked if unpacked.is_file() else None)
    if program is None:
        return "(absent)"
    # "/path/docker-registry github.com/docker/distribution 2.8.2+ds1": what is last.
    said = subprocess.run([program, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return said.splitlines()[0].split()[-1]
