"""The plot of the results."""

import textwrap

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from file_jobs import STREAM
from growth import GIGABYTES, UNCHANGED
from measure import OURS
from targets import MIB

# Job, the peer that a user would take else or that sets the mark, what to call the job.
JOBS = [
    ("unchanged-docker", "docker image inspect", "unchanged,\ninto Docker"),
    ("unchanged-podman", "podman image inspect", "unchanged,\ninto Podman"),
    ("unchanged-other-file", "cp", "unchanged,\nto a file"),
    ("leaf-docker", "docker load of the whole archive", "one package,\ninto Docker"),
    ("leaf-podman", "podman load of the whole archive", "one package,\ninto Podman"),
    ("cold-file", "tar", "cold,\nto a file"),
    ("cold-pipe", "tar", "cold,\ninto a pipe"),
    ("cold-docker", "docker load of the whole archive", "cold,\ninto Docker"),
    ("cold-podman", "podman load of the whole archive", "cold,\ninto Podman"),
]
OUR_COLOUR, PEER_COLOUR, NIXPKGS_COLOUR = "#3465a4", "#b0b0b0", "#e0a030"


def plot(results, file):
    """Writes the plot; the same results give the same bytes."""
    plt.rcParams.update({"svg.hashsalt": "layerhold", "font.size": 9, "svg.fonttype": "none"})
    figure, (times, change, growth) = plt.subplots(
        3, 1, figsize=(10, 11), height_ratios=[1.3, 1, 1], constrained_layout=True)
    plot_times(results, times)
    plot_change(results, change)
    plot_growth(results, growth)
    figure.savefig(file, metadata={"Date": None})


def plot_times(results, axes):
    """Seconds by job."""
    jobs = [job for job in JOBS if results.figures(job[0], OURS)]
    for n, (job, peer, _) in enumerate(jobs):
        nixpkgs = next((name for name in results.contenders(job) if name.startswith(STREAM)), None)
        bars = [(OURS, OUR_COLOUR), (peer, PEER_COLOUR), (nixpkgs, NIXPKGS_COLOUR)]
        for at, (contender, colour) in enumerate(bars):
            figures = results.figures(job, contender) if contender else None
            if figures:
                place = n + (at - 1) * 0.27
                axes.bar(place, figures.wall, 0.25, color=colour)
                axes.text(place, figures.wall, f"{figures.wall:.2g}", ha="center", va="bottom", fontsize=7)
    axes.set_yscale("log")
    axes.set_xticks(range(len(jobs)), [f"{label}\n({textwrap.fill(peer, 16)})" for _, peer, label in jobs], fontsize=7)
    axes.set_ylabel("seconds (log)")
    axes.set_title("Time, medians")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (OUR_COLOUR, PEER_COLOUR, NIXPKGS_COLOUR)]
    axes.legend(handles, [OURS, "the peer in brackets", STREAM], loc="upper left")


def plot_change(results, axes):
    """Bytes by kind of change."""
    lines = results.notes("plan")
    for at, (key, label, colour) in enumerate([
        ("changed", "changed store paths", PEER_COLOUR),
        ("new", "new layers, layerhold", OUR_COLOUR),
        ("popularity_new", "new layers, nixpkgs' popularity plan", NIXPKGS_COLOUR),
    ]):
        places = [n + (at - 1) * 0.27 for n in range(len(lines))]
        values = [line[key] / MIB for line in lines]
        axes.bar(places, values, 0.25, color=colour, label=label)
        for place, value in zip(places, values):
            axes.text(place, value, f"{value:.0f}", ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(lines)), [line["variant"] for line in lines])
    axes.set_ylabel("MiB")
    axes.set_title("Bytes that are new after a change")
    if lines:
        axes.set_ylim(top=axes.get_ylim()[1] * 1.2)
        axes.legend(loc="upper left", ncols=3)


def plot_growth(results, axes):
    """Seconds by bytes."""
    sizes = {note["point"]: note["bytes"] / MIB for note in results.notes("growth")}
    for contender, label, colour in [
        (OURS, "cold", OUR_COLOUR), (UNCHANGED, "nothing changed", NIXPKGS_COLOUR)]:
        points = [
            (sizes[f"bytes-{count}"], figures.wall, figures.memory)
            for count in GIGABYTES
            if (figures := results.figures(f"growth-bytes-{count}", contender))
        ]
        if points:
            axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=colour, label=label)
            for size, wall, memory in points:
                axes.annotate(f"{memory / MIB:.0f} MiB", (size, wall), textcoords="offset points", xytext=(6, -10),
                              fontsize=7)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("MiB in the image")
    axes.set_ylabel("seconds")
    axes.set_title("Growth, into a pipe; beside each point the peak of memory")
    if axes.has_data():
        axes.legend()
