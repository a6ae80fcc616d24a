"""What layerhold is to reach, and whether the figures say that it does."""

import dataclasses
import os

from file_jobs import FLOOR, NIX2CONTAINER, STREAM
from growth import GIGABYTES, PATHS, UNCHANGED
from measure import OURS

MIB = 1 << 20
# A figure per unit may grow by so much from the least to the most and still count as linear.
LINEAR = 1.25


@dataclasses.dataclass
class Verdict:
    """A target with the figure that was measured; `None` where nothing was."""

    job: str
    what: str
    figure: str
    reached: bool | None


def verdicts(results):
    """All targets."""
    return [*timed(results), *planned(results), memory(results), *grown(results)]


def at_most(job, what, value, limit, unit):
    """A target with a ceiling."""
    return Verdict(job, f"{what}: at most {shown(limit)}{unit}", *judged(value, unit, lambda: value <= limit))


def shown(limit):
    """A limit in words; it is compared as it is."""
    return f"{limit:.0f}" if limit >= 100 else f"{limit:.3g}"


def at_least(job, what, value, limit, unit):
    """A target with a floor."""
    return Verdict(job, f"{what}: at least {limit:g}{unit}", *judged(value, unit, lambda: value >= limit))


def judged(value, unit, holds):
    """The figure in words, and whether it is good enough."""
    if value is None:
        return "not measured", None
    return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}", holds()


def timed(results):
    """Targets on seconds."""

    def beyond(job, other):
        seconds = results.beyond(job, OURS, other)
        return None if seconds is None else seconds * 1000

    def wall(job):
        figures = results.figures(job, OURS)
        return figures and figures.wall * 1000

    ratio = results.ratio
    for program in ["docker", "podman"]:
        inspect = f"{program} image inspect"
        yield at_most(f"unchanged-{program}", f"beyond `{inspect}`", beyond(f"unchanged-{program}", inspect), 50, " ms")
    yield at_most("unchanged-same-file", "time", wall("unchanged-same-file"), 50, " ms")
    yield at_most("unchanged-other-file", "beside `cp`", ratio("unchanged-other-file", OURS, "cp", "wall"), 1, " times")
    for program, own in [
        ("docker", "docker load of a ready thin archive"), ("podman", "podman pull of a ready layout")]:
        yield at_most(f"leaf-{program}", f"beyond {own}", beyond(f"leaf-{program}", own), 200, " ms")
    yield at_most("cold-file", "beside `tar`", ratio("cold-file", OURS, "tar", "wall"), 1, " times")
    yield at_least("cold-file", f"as fast as {STREAM}", ratio("cold-file", STREAM, OURS, "wall"), 5, " times")
    yield at_most("cold-pipe", "beside `tar`", ratio("cold-pipe", OURS, "tar", "wall"), 1.3, " times")
    for job in ["zstd-1", "zstd-3", "gzip-6"]:
        parts = ratio(job, OURS, "the parts, one after another", "cpu")
        yield at_most(job, "CPU beside that of the parts", parts, 1.05, " times")
    hashed = ratio("digests", OURS, FLOOR, "cpu")
    yield at_most("digests", "CPU beside that of reading and sha256", hashed, 1.1, " times")
    alone = ratio("digests", NIX2CONTAINER, OURS, "wall")
    yield at_least("digests", f"as fast as {NIX2CONTAINER}", alone, 4, " times")


def planned(results):
    """Targets on bytes."""
    for line in results.notes("plan"):
        limit = (line["changed"] * 1.05 + 1e6) / MIB
        job = f"change: {line['variant']}"
        for way, prefix in [("", ""), (", `--previous`", "previous_"), (", `--previous`, again", "again_")]:
            if line[f"{prefix}new"] is None:
                continue
            yield at_most(job + way, "in new layers", line[f"{prefix}new"] / MIB, limit, " MiB")
            # The roots alone can lie on top.
            if line["variant"] in ("leaf", "several", "added"):
                yield at_most(job + way, "above the unchanged chain", line[f"{prefix}above"] / MIB, limit, " MiB")


def memory(results):
    """The most that any of our runs took. Of a run into a runtime the runtime's own program is the largest process."""
    peaks = [
        line["memory"]
        for line in results.measured()
        if line["contender"].startswith(OURS) and not line["job"].endswith(("-docker", "-podman"))
    ]
    peak = max(peaks) / MIB if peaks else None
    return at_most("into files, pipes and registries", "peak memory", peak, most_memory(), " MiB")


def most_memory():
    """What a run may take, in MiB: it grows with the cores, and with nothing else."""
    return 64 + 16 * max(0, os.cpu_count() - 2)


def grown(results):
    """Time for a byte and for a store path, at the most beside at the least; memory at the most."""
    points = {note["point"]: note for note in results.notes("growth")}
    # Of few and small store paths the program's start takes most of the time.
    sizes = [("bytes", "GB", GIGABYTES[0], GIGABYTES[-1]), ("paths", "store paths", PATHS[1], PATHS[-1])]
    for unit, name, least, most in sizes:
        costs = []
        for count in [least, most]:
            figures = results.figures(f"growth-{unit}-{count}", OURS)
            costs.append(figures and figures.wall / points[f"{unit}-{count}"][unit])
        value = costs[1] / costs[0] if all(costs) else None
        yield at_most(f"growth: {unit}", f"time for one, of {most:,} {name} beside {least:,}", value, LINEAR, " times")
        # What does not grow at all is the stricter form of linear: the same bound at the most as anywhere.
        peaks = [
            run["memory"]
            for contender in [OURS, UNCHANGED]
            for run in results.runs(f"growth-{unit}-{most}", contender)
        ]
        peak = max(peaks) / MIB if peaks else None
        yield at_most(f"growth: {unit}", f"peak memory, of {most:,} {name}", peak, most_memory(), " MiB")
