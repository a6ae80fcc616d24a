"""A re-implementation, for comparison, of what nixpkgs' `streamLayeredImage` (and so `flox containerize`) does.

Written from what is known of it, not copied: the popularity plan, then each layer archived twice by Python's `tarfile`,
once for its digest and once, through a pipe and a thread, into the image. Called as

    stream_layered_image.py ROOT LAYERS NAME

with the layers in a JSON file: lists of store paths, the bottom one first; ROOT is what `/nix/store` lies in.
"""

import hashlib
import io
import itertools
import json
import os
import pathlib
import sys
import tarfile
import threading


def popularity_layers(closure, most_layers):
    """nixpkgs' plan: the store paths that most others need each in a layer of their own, the rest in the last one."""
    references = {info.path: [path for path in info.references if path != info.path] for info in closure}
    needed_by = dict.fromkeys(references, 0)
    for start in references:
        seen, pending = {start}, [start]
        while pending:
            path = pending.pop()
            needed_by[path] += 1
            new = [other for other in references[path] if other not in seen]
            seen.update(new)
            pending.extend(new)
    ordered = sorted(references, key=lambda path: (-needed_by[path], path))
    # Its last layer is the customisation layer, with no store paths.
    alone, rest = ordered[: most_layers - 2], ordered[most_layers - 2 :]
    return [*([path] for path in alone), *([rest] if rest else [])]


class Digest:
    """A file that keeps nothing of what is written to it but its digest and size."""

    def __init__(self):
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data):
        self.digest.update(data)
        self.size += len(data)


def archive_to(out, root, paths):
    """Writes the tar of a layer."""

    def owned(info):
        info.mtime, info.uid, info.gid, info.uname, info.gname = 1, 0, 0, "root", "root"
        return info

    def directory(name):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o0555
        return owned(info)

    with tarfile.open(fileobj=out, mode="w|") as tar:
        tar.addfile(directory("/nix"))
        tar.addfile(directory("/nix/store"))
        for path in paths:
            path = pathlib.Path(root + path)
            files = [path] if path.is_symlink() else itertools.chain([path], path.rglob("*"))
            for file in sorted(files):
                info = tar.gettarinfo(file)
                if info.islnk():
                    info.type, info.linkname, info.size = tarfile.REGTYPE, "", file.stat().st_size
                info.name = str(file)[len(root) :]
                if info.isfile():
                    with open(file, "rb") as content:
                        tar.addfile(owned(info), content)
                else:
                    tar.addfile(owned(info))


def add_layer(image, root, paths):
    """Adds a layer to the image: its digest first, which is in its name, then its bytes."""
    digest = Digest()
    archive_to(digest, root, paths)
    checksum = digest.digest.hexdigest()
    info = tarfile.TarInfo(f"{checksum}/layer.tar")
    info.size, info.mtime = digest.size, 1
    reading, writing = os.pipe()
    with open(reading, "rb") as read:

        def produce():
            with open(writing, "wb") as write:
                archive_to(write, root, paths)

        threading.Thread(target=produce).start()
        image.addfile(info, read)
    return checksum


def add_text(image, name, value):
    """Adds a description to the image."""
    text = json.dumps(value).encode()
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(text), 1
    image.addfile(info, io.BytesIO(text))
    return hashlib.sha256(text).hexdigest()


def main(root, layers, name):
    """Streams the image to standard output."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as image:
        checksums = [add_layer(image, root, paths) for paths in json.loads(pathlib.Path(layers).read_text())]
        config = {
            "created": "1970-01-01T00:00:01+00:00",
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {},
            "rootfs": {"diff_ids": [f"sha256:{checksum}" for checksum in checksums], "type": "layers"},
            "history": [{"created": "1970-01-01T00:00:01+00:00"} for _ in checksums],
        }
        config_name = f"{hashlib.sha256(json.dumps(config).encode()).hexdigest()}.json"
        add_text(image, config_name, config)
        archives = [f"{checksum}/layer.tar" for checksum in checksums]
        add_text(image, "manifest.json", [{"Config": config_name, "RepoTags": [name], "Layers": archives}])


if __name__ == "__main__":
    main(*sys.argv[1:])
