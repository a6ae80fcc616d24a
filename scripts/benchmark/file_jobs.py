"""Jobs whose result is a file or a stream of bytes."""

import os
import re

from measure import OURS, Contender, Job
from place import quoted, run

THREADS = os.cpu_count()
DIGEST = "openssl dgst -sha256"
STREAM = "streamLayeredImage (re-implemented)"
NIX2CONTAINER = "nix2container (re-implemented)"
FLOOR = "reading and sha256 alone, on all cores"


def file_jobs(place):
    """Uncompressed archives in files: unchanged, cold, with one leaf package changed."""
    out, kept = place.out, place.work / "kept.tar"

    def keep():
        place.warm()
        run(place.layerhold("base", "-f", kept))

    def forget_files():
        place.remove_output()
        for known in (place.cache / "outputs").iterdir():
            known.unlink()

    copied = quoted(["cp", kept, out])
    synced = f" && sync {quoted([out])}"

    def whole(variant, name, prepare):
        tar, nixpkgs = place.tar(variant, out), f"{place.stream_layered_image(variant)} > {quoted([out])}"
        return Job(
            name,
            [
                Contender(OURS, place.layerhold(variant, "-f", out), prepare, out),
                Contender("tar", tar, place.remove_output, out),
                Contender("tar, then sync of the file", tar + synced, place.remove_output, out, rounds=5),
                Contender(STREAM, nixpkgs, place.remove_output, out, rounds=5),
            ],
            rounds=11,
        )

    return [
        Job("unchanged-same-file", [Contender(OURS, place.layerhold("base", "-f", kept), output=kept)], 11, keep),
        Job(
            "unchanged-other-file",
            [
                Contender(OURS, place.layerhold("base", "-f", out), place.remove_output, out),
                Contender("cp", copied, place.remove_output, out),
                Contender("cp, then sync of the file", copied + synced, place.remove_output, out),
            ],
            rounds=11,
            setup=keep,
            # In some runs whoever was the first in each turn took twice as long as in others.
            rotated=True,
        ),
        Job(
            "unchanged-only-file",
            [
                Contender(OURS, place.layerhold("base", "-f", out), forget_files, out),
                Contender("cp", copied, place.remove_output, out),
            ],
            setup=keep,
        ),
        whole("base", "cold-file", place.cold),
        whole("leaf", "leaf-file", place.warm),
    ]


def pipe_jobs(place):
    """Uncompressed archives into a pipe that is read at full speed."""

    def piped(command):
        return f"{command} | cat >/dev/null"

    ours = piped(place.layerhold("base", "-f", "-"))
    tar, nixpkgs = piped(place.tar("base", "-")), piped(place.stream_layered_image("base"))
    return [
        Job(
            "cold-pipe",
            [Contender(OURS, ours, place.cold), Contender("tar", tar), Contender(STREAM, nixpkgs, rounds=5)],
            rounds=11,
        ),
        Job("unchanged-pipe", [Contender(OURS, ours, place.warm), Contender("tar", tar)]),
    ]


def codec_jobs(place):
    """Compressed archives, cold. "The parts": reading a ready tar file, the codec on one thread, both digests. With all
    cores at work each may do less than alone, so the parts are also done with a share of the tar on each core at once."""
    out, part = quoted([place.out]), quoted([place.work / "part"])

    def parts_of(codec, whole, part):
        return f"{codec} {whole} > {part} && {DIGEST} {whole} && {DIGEST} {part}"

    def parts_at_once(codec):
        shares = place.shares()
        parts = [quoted([f"{place.work / 'part'}.{at}"]) for at in range(len(shares))]
        begin = lambda share, part: f"({parts_of(codec, quoted([share]), part)}) & all+=($!); "
        begun = "".join(begin(share, part) for share, part in zip(shares, parts))
        # Each by its number: of two that end at the same moment `wait -n` knows only one.
        return f'all=(); {begun}for one in "${{all[@]}}"; do wait "$one"; done'

    def job(name, codec, pipeline, alone, others=()):
        # The archive is made before anything is measured, by whoever comes first.
        whole = quoted([place.archive("base")])
        ours = place.layerhold("base", "--compression", codec, "-f", place.out)
        return Job(
            name,
            [
                Contender(OURS, ours, place.cold, place.out),
                Contender(f"tar | {pipeline}", f"{place.tar('base', '-')} | {pipeline} > {out}",
                          place.remove_output, place.out),
                Contender("the parts, on all cores at once", parts_at_once(alone)),
                Contender("the parts, one after another", parts_of(alone, whole, part), output=place.work / "part"),
                *others,
            ],
            rounds=5 if codec.startswith("gzip") else 9,
        )

    skopeo = quoted(["skopeo", "--insecure-policy", "copy", "-q", f"docker-archive:{place.archive('base')}",
                     f"oci:{place.out}:base"])
    umoci = " && ".join([
        quoted(["umoci", "init", "--layout", place.out]),
        quoted(["umoci", "new", "--image", f"{place.out}:base"]),
        quoted(["umoci", "insert", "--image", f"{place.out}:base", place.context("base") / "nix", "/nix"]),
    ])
    return [
        job("zstd-1", "zstd:1", f"zstd -q -1 -T{THREADS}", "zstd -q -1 -T1 -c"),
        job("zstd-3", "zstd:3", f"zstd -q -3 -T{THREADS}", "zstd -q -3 -T1 -c"),
        job("gzip-6", "gzip:6", f"pigz -6 -p{THREADS}", "libdeflate-gzip -6 -c", [
            Contender("skopeo copy of a ready archive to a layout", skopeo, place.remove_output, place.out, rounds=2),
            Contender("umoci insert into a layout", umoci, place.remove_output, place.out, rounds=2),
        ]),
    ]


def digest_jobs(place):
    """The digests of uncompressed layers, and nothing else where there is an option for that."""
    # A file is named so that no runtime is asked.
    ours = place.layerhold("base", *(["--dry-run", "-f", place.out] if has_dry_run(place) else ["-f", "/dev/null"]))
    tar = f"{place.tar('base', '-')} | {DIGEST}"
    floor = quoted([os.environ["BENCH_FLOOR"], place.trees("base")])
    return [
        Job(
            "digests",
            [
                Contender(OURS, f"{ours} >/dev/null", place.cold),
                Contender(FLOOR, floor),
                Contender(NIX2CONTAINER, place.nix2container("base")),
                Contender("tar | sha256 on one core", f"taskset -c 0 bash -euo pipefail -c {quoted([tar])}"),
                Contender("tar | sha256 on two cores", tar),
                Contender("sha256 of a ready tar file", f"{DIGEST} {quoted([place.archive('base')])}"),
            ],
            rounds=11,
        )
    ]


def has_dry_run(place):
    """Whether the program can make digests without delivering anything."""
    told = run(quoted([place.program, "containerize", "--help"]))
    return re.search(r"^\s+--dry-run\b", told, re.MULTILINE) is not None
