"""Where everything lies, and the commands that all jobs share."""

import fcntl
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import tarfile

from corpus import the_store
from stream_layered_image import popularity_layers

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILT = REPOSITORY / "target/release/layerhold"
# As many as layerhold makes by default, and nixpkgs too.
MOST_LAYERS = 100


class Place:
    """The folder of the benchmarks below target, with what the program under test has made there."""

    def __init__(self):
        self.work = REPOSITORY / "target/bench"
        self.lock = open(self.work / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("scripts/bench: it runs already") from None
        self.store = the_store(self.work)
        self.cache = self.work / "cache"
        self.forgotten = self.work / "forgotten"
        self.out = self.work / "out"
        self.program_id = hashlib.sha256(BUILT.read_bytes()).hexdigest()[:16]
        made_by = f"made-{self.program_id}"
        self.made = self.work / made_by
        for old in self.work.glob("made-*"):
            if old.name != made_by:
                shutil.rmtree(old)
        self.made.mkdir(exist_ok=True)
        # Another build meanwhile shall not change what is measured.
        self.program = self.made / "layerhold"
        shutil.copy2(BUILT, self.program)

    def layerhold(self, environment, *arguments, store=None):
        """The command that containerizes an environment."""
        store = store or self.store
        words = [self.program, "-q", "containerize", "--store", store.root, "-d", store.environment(environment)]
        return f"LAYERHOLD_CACHE={shlex.quote(str(self.cache))} {quoted([*words, *arguments])}"

    def tar(self, variant, out):
        """The command that archives the same store paths with Debian's tar."""
        listed = self.made / f"{variant}.paths"
        listed.write_text("".join(f"{info.path[1:]}\n" for info in self.store.closure(variant)))
        return quoted(["tar", "-C", self.store.root, "-cf", out, "-T", listed])

    def trees(self, variant):
        """A file with the path of each tree of the same store paths, one in a line."""
        listed = self.made / f"{variant}.trees"
        listed.write_text("".join(f"{self.store.root}{info.path}\n" for info in self.store.closure(variant)))
        return listed

    def popularity_layers(self, variant):
        """A file with the layers that nixpkgs makes of a variant, and nix2container much the same."""
        layers = self.made / f"{variant}.layers"
        layers.write_text(json.dumps(popularity_layers(self.store.closure(variant), MOST_LAYERS)))
        return layers

    def stream_layered_image(self, variant):
        """The command that streams the image as nixpkgs does."""
        script = pathlib.Path(__file__).with_name("stream_layered_image.py")
        return quoted(["python3", script, self.store.root, self.popularity_layers(variant), "stream:latest"])

    def nix2container(self, variant):
        """The command that finds the digests of the layers as nix2container does."""
        return quoted([self.work / "nix2container", self.store.root, self.popularity_layers(variant)])

    def remove_output(self):
        """Removes what a run has written."""
        remove(self.out)

    def cold(self):
        """No layer is known."""
        self.remove_output()
        self.forget_cache()

    def warm(self):
        """All layers of the base environment are known, uncompressed; none that only a variant has."""
        self.remove_output()
        self.archive("base")
        self.forget_cache()
        shutil.copytree(self.made / "cache-base", self.cache)

    def forget_cache(self):
        """Puts the layer store out of the way, with nothing left in its files. They are not removed at once: for a
        minute ext4 without a journal passes over each inode that was just freed whenever it makes a file, and whoever is
        measured next would pay for that; nor do they keep their bytes, so that every run finds as much free memory as
        the one before."""
        if self.cache.exists():
            self.forgotten.mkdir(exist_ok=True)
            aside = self.cache.rename(self.forgotten / str(len(list(self.forgotten.iterdir()))))
            for file in aside.rglob("*"):
                if file.is_file():
                    os.truncate(file, 0)

    def clear(self):
        """Removes what was put out of the way."""
        remove(self.forgotten)

    def archive(self, variant):
        """The whole image of a variant in a file."""
        file = self.made / f"{variant}.tar"
        if not file.exists():
            print(f"making the archive of '{variant}'", flush=True)
            if variant == "base":
                self.cold()
            else:
                self.warm()
            run(self.layerhold(variant, "-f", file))
            if variant == "base":
                remove(self.made / "cache-base")
                shutil.copytree(self.cache, self.made / "cache-base")
        return file

    def shares(self):
        """The archive of the base environment in as many files of one length as there are cores."""
        count = os.cpu_count()
        shares = [self.made / f"base.tar.{at}" for at in range(count)]
        if not all(share.exists() for share in shares):
            whole = self.archive("base")
            run(quoted(["split", "-n", count, "-d", "-a", len(str(count - 1)), whole, f"{whole}."]))
        return shares

    def thin_archive(self, variant):
        """The archive without the layers that a daemon with the base image has under the same chain."""
        file = self.made / f"{variant}-thin.tar"
        if not file.exists():
            known, wanted = layers_of_archive(self.archive("base")), layers_of_archive(self.archive(variant))
            same = 0
            while same < min(len(known), len(wanted)) and known[same] == wanted[same]:
                same += 1
            left_out = set(wanted[:same])
            with tarfile.open(self.archive(variant)) as whole, tarfile.open(file, "w") as thin:
                for member in whole:
                    if member.name not in left_out:
                        thin.addfile(member, whole.extractfile(member) if member.isfile() else None)
        return file

    def layout(self, variant):
        """The image of a variant in an image layout."""
        folder = self.made / f"{variant}-layout"
        if not folder.exists():
            self.warm()
            run(self.layerhold(variant, "--layout", folder))
        return folder

    def context(self, variant):
        """A folder with a variant's closure and a Dockerfile that copies it: what one does without such a tool."""
        context = self.made / f"{variant}-context"
        if not context.exists():
            into = context / "nix/store"
            into.mkdir(parents=True)
            paths = [self.store.root / info.path[1:] for info in self.store.closure(variant)]
            run(quoted(["cp", "-al", "-t", into, *paths]))
            (context / "Dockerfile").write_text("FROM scratch\nCOPY nix /nix\n")
        return context


def layers_of_archive(file):
    """The names of an archive's layers, the bottom one first."""
    with tarfile.open(file) as archive:
        return json.load(archive.extractfile("manifest.json"))[0]["Layers"]


def quoted(words):
    """A command line."""
    return shlex.join(map(str, words))


def run(command):
    """Runs a command that is not measured; gives its standard output."""
    done = subprocess.run(["/bin/bash", "-euo", "pipefail", "-c", command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"scripts/bench: '{command}' failed")
    return done.stdout.strip()


def remove(path):
    """Removes a file or a directory; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
