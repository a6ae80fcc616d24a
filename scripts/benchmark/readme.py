"""Puts the few figures that README.md has between its two marks."""

import os

from file_jobs import STREAM
from measure import OURS
from place import REPOSITORY

BEGIN, END = "<!-- written by scripts/bench -->\n", "<!-- that is all -->\n"
# What is done; the job; what others take for it: who, and how it is called here.
ROWS = [
    ("nothing changed, into Docker", "unchanged-docker", [("docker image inspect", "`docker image inspect` alone")]),
    ("nothing changed, pushed", "unchanged-push", [("podman push", "`podman push`")]),
    *((f"{change}, into {program.capitalize()}", f"{job}-{program}", [
        (f"{program} build, the closure copied", f"`{program} build`"),
        (f"{STREAM} | {program} load", f"streamLayeredImage and `{program} load`"),
    ]) for change, job in [("one package changed", "leaf"), ("from nothing", "cold")] for program in ["docker", "podman"]),
    ("one package changed, pushed", "leaf-push", [("podman push", "`podman push`")]),
    ("from nothing, pushed", "cold-push", [("podman push", "`podman push`")]),
    ("from nothing, into a file", "cold-file", [("tar", "`tar`"), (STREAM, "streamLayeredImage")]),
]


def write_readme(results, base, seconds):
    """Writes the part of README.md; `base` is the closure that was measured, `seconds` says a time in words."""
    file = REPOSITORY / "README.md"
    before, rest = file.read_text().split(BEGIN)
    after = rest.split(END)[1]
    file.write_text(before + BEGIN + "\n".join(lines(results, base, seconds)) + "\n" + END + after)
    return file


def lines(results, base, seconds):
    """The table, as far as it was measured."""
    time = lambda job, contender: f"{seconds(results.figures(job, contender).wall)} s"
    size = sum(info.nar_size for info in base) / 1e9
    yield f"| an environment of {size:.1f} GB in {len(base)} store paths, {os.cpu_count()} cores | layerhold | otherwise |"
    yield "|---|---:|---|"
    for words, job, others in ROWS:
        measured = results.contenders(job)
        if OURS in measured:
            found = ", ".join(f"{name} {time(job, other)}" for other, name in others if other in measured)
            yield f"| {words} | {time(job, OURS)} | {found} |"
