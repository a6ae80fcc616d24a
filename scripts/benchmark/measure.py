"""Runs commands in turns and writes down what each run took."""

import dataclasses
import json
import mmap
import os
import pathlib
import signal
import statistics
import subprocess
import time
from collections.abc import Callable

TICKS = os.sysconf("SC_CLK_TCK")
OURS = "layerhold"
# The same, laid out on the image before.
PREVIOUS = f"{OURS} --previous"
# An image of the corpus, and half as much for what else is written.
WRITTEN = 3 << 29


@dataclasses.dataclass
class Contender:
    """A way to do a job: a command for bash, what makes its surroundings ready, the file or directory that it makes."""

    name: str
    command: str
    prepare: Callable[[], None] = lambda: None
    output: pathlib.Path | None = None
    # Fewer rounds than the job has, for what takes long.
    rounds: int | None = None


@dataclasses.dataclass
class Job:
    """What is to be done, the ways to do it, and how often each is measured."""

    name: str
    contenders: list[Contender]
    rounds: int = 5
    setup: Callable[[], None] = lambda: None
    # Whether another contender is the first in each turn: where a run's place in the turn may tell.
    rotated: bool = False


@dataclasses.dataclass
class Figures:
    """Medians over the runs of one contender: seconds, bytes; how much of the machine others used meanwhile."""

    wall: float
    cpu: float
    memory: int
    output: int | None
    runs: int
    others: float


class Results:
    """Figures, a JSON object a line. They belong to one program and one corpus: others' are left aside."""

    def __init__(self, file, of):
        self.file, self.of, self.lines = file, of, []
        if file.exists():
            lines = (json.loads(line) for line in file.read_text().splitlines())
            self.lines = [line for line in lines if line["of"] == of]

    def add(self, **line):
        """Writes a line down; it is on the disk at once, so that a run that is cut short can go on."""
        line["of"] = self.of
        self.lines.append(line)
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")

    def measured(self):
        """All runs that were measured."""
        return [line for line in self.lines if "note" not in line]

    def runs(self, job, contender):
        """The runs of one contender."""
        return [line for line in self.measured() if (line["job"], line["contender"]) == (job, contender)]

    def contenders(self, job):
        """Whom the job has figures of, in the order of the first runs."""
        return list(dict.fromkeys(line["contender"] for line in self.measured() if line["job"] == job))

    def figures(self, job, contender):
        """The medians; `None` where nothing was measured."""
        runs = self.runs(job, contender)
        if not runs:
            return None
        median = lambda key: statistics.median(run[key] for run in runs)
        output = None if runs[0]["output"] is None else int(median("output"))
        return Figures(median("wall"), median("cpu"), int(median("memory")), output, len(runs), median("others"))

    def ratio(self, job, contender, other, key):
        """The median of the ratios, pair by pair, of one contender's figures to another's."""
        pairs = list(zip(self.runs(job, contender), self.runs(job, other)))
        return statistics.median(a[key] / b[key] for a, b in pairs) if pairs else None

    def beyond(self, job, contender, other):
        """The median of the seconds, pair by pair, that one contender took beyond another."""
        pairs = list(zip(self.runs(job, contender), self.runs(job, other)))
        return statistics.median(a["wall"] - b["wall"] for a, b in pairs) if pairs else None

    def notes(self, kind):
        """Lines of another kind than runs."""
        return [line for line in self.lines if line.get("note") == kind]


class Bench:
    """Measures jobs. `daemons` are the processes whose CPU time counts too."""

    def __init__(self, results, daemons, log):
        self.results, self.daemons, self.log = results, daemons, log

    def run(self, job):
        """Measures what is missing of a job, in turns: every contender once, then every contender again."""
        missing = lambda contender, turn: (
            turn < (contender.rounds or job.rounds) and len(self.results.runs(job.name, contender.name)) <= turn
        )
        if not any(missing(contender, turn) for turn in range(job.rounds) for contender in job.contenders):
            return
        print(f"{job.name}:", flush=True)
        job.setup()
        for turn in range(job.rounds):
            first = turn % len(job.contenders) if job.rotated else 0
            for contender in [*job.contenders[first:], *job.contenders[:first]]:
                if missing(contender, turn):
                    contender.prepare()
                    line = self.measure(contender)
                    self.results.add(job=job.name, contender=contender.name, **line)
                    print(
                        f"  {contender.name}: {line['wall']:.3f} s, CPU {line['cpu']:.3f} s,"
                        f" {line['memory'] >> 20} MiB, others {line['others']:.0%}",
                        flush=True,
                    )

    def measure(self, contender):
        """Runs a contender once: seconds, and the resident bytes of the largest process."""
        touch_memory(min(WRITTEN, free_memory()))
        # What earlier runs wrote shall not be written while this one is timed.
        os.sync()
        memory = self.log.with_name("memory")
        with self.log.open("ab") as log:
            log.write(f"$ {contender.command}\n".encode())
            log.flush()
            machine, daemons, begun = busy_seconds(), self.daemon_seconds(), time.perf_counter()
            # What wait4(2) says of memory begins with this process's own, which `time` between them keeps out.
            meter = ["/usr/bin/time", "-q", "-f", "%M", "-o", memory]
            process = subprocess.Popen(
                [*meter, "/bin/bash", "-euo", "pipefail", "-c", contender.command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                # What was started ends with us.
                os.killpg(process.pid, signal.SIGTERM)
                raise
            wall = time.perf_counter() - begun
            cpu = used.ru_utime + used.ru_stime + self.daemon_seconds() - daemons
            machine = busy_seconds() - machine
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"scripts/bench: '{contender.command}' failed: the reason is at the end of {self.log}")
        return {
            "wall": wall,
            "cpu": cpu,
            "system": used.ru_stime,
            "memory": int(memory.read_text()) * 1024,
            "output": size(contender.output),
            "others": max(0.0, machine - cpu) / (wall * os.cpu_count()),
        }

    def daemon_seconds(self):
        """The CPU time of the daemons and of the processes that they started and waited for."""
        return sum(map(process_seconds, self.daemons))


def settle_memory():
    """Makes what is free alike. The hosts of some virtual machines take back memory that is free for seconds, in blocks
    of megabytes and at a few hundred megabytes a second; to write to it afterwards takes several times as long, and
    whoever writes most pays for that. All of it is touched, and the host has the time to take what it wants."""
    touch_memory(free_memory())
    time.sleep(60)


def touch_memory(size):
    """Takes so many bytes of memory and gives them back."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()


def free_memory():
    """The bytes of memory that nothing uses, caches left alone (proc(5)), as far as this process may have them
    (cgroups(7)), but for what the kernel may need meanwhile."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemFree:")) << 10
    group = pathlib.Path("/proc/self/cgroup").read_text().rsplit("::", 1)[-1].strip().lstrip("/")
    for folder in [pathlib.Path("/sys/fs/cgroup") / group, pathlib.Path("/sys/fs/cgroup")]:
        try:
            most, used = ((folder / name).read_text().strip() for name in ["memory.max", "memory.current"])
        except OSError:
            continue
        if most != "max":
            free = min(free, int(most) - int(used))
    return max(free - (1 << 29), 1 << 20)


def process_seconds(pid):
    """The CPU time of a process and of those it waited for (proc(5))."""
    _, fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    return sum(map(int, fields.split()[11:15])) / TICKS


def busy_seconds():
    """The CPU time of everything on the machine since it started, waiting left out (proc(5))."""
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = (
        int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft + stolen) / TICKS


def size(path):
    """The bytes of a file, or of all files in a directory."""
    if path is None:
        return None
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
