"""The parts of `scripts/bench`, one after another."""

import os
import shutil
import signal
import sys

import corpus
from about import about
from file_jobs import codec_jobs, digest_jobs, file_jobs, pipe_jobs
from growth import run_growth
from measure import Bench, Results, settle_memory
from place import Place
from plan_job import count_new_bytes
from push_jobs import run_pushes
from report import write_report
from runtime_jobs import runtime_jobs

TIMED = {
    "file": file_jobs,
    "pipe": pipe_jobs,
    "codecs": codec_jobs,
    "digests": digest_jobs,
    "runtimes": runtime_jobs,
}
PARTS = ["corpus", *TIMED, "push", "plan", "growth", "report"]


def main(parts):
    """Does these parts, or all of them."""
    place = Place()
    if "fresh" in parts:
        (place.work / "results.jsonl").unlink(missing_ok=True)
        parts.remove("fresh")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise SystemExit(f"scripts/bench: no part '{unknown[0]}': there are {', '.join(PARTS)}, and fresh")
    corpus.build(place.work)
    made_of = (place.work / "corpus/made-of").read_text()[:16]
    results = Results(place.work / "results.jsonl", f"{place.program_id} {made_of}")
    daemons = os.environ["BENCH_DAEMONS"].split()
    if parts != ["report"] and not results.notes("about"):
        results.add(note="about", **about(place))
    bench = Bench(results, daemons, place.work / "log")
    shutil.rmtree(place.cache, ignore_errors=True)
    for part in parts or PARTS:
        if part not in ["corpus", "plan", "report"]:
            settle_memory()
        if part in TIMED:
            for job in TIMED[part](place):
                bench.run(job)
                place.clear()
        elif part == "push":
            run_pushes(place, bench)
        elif part == "plan":
            count_new_bytes(place, results)
        elif part == "growth":
            run_growth(place, bench)
        elif part == "report":
            write_report(place, results)
    place.cold()
    place.clear()


# Whoever ends us ends what we have started.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
main(sys.argv[1:])
