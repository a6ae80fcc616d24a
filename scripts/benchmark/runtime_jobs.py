"""Jobs whose result is an image in Docker or Podman."""

import json
import os
import time

from file_jobs import STREAM
from measure import OURS, PREVIOUS, Contender, Job
from place import quoted, run


class Runtime:
    """Docker or Podman with images of its own."""

    def __init__(self, program, place):
        self.program, self.place, self.base = program, place, None

    def images(self):
        """The IDs of all images."""
        return {image.removeprefix("sha256:") for image in run(f"{self.program} images -q --no-trunc").split()}

    def remove_but(self, kept):
        """Removes all images but those."""
        for image in self.images() - kept:
            run(f"{self.program} rmi -f {image} >/dev/null")

    def empty(self):
        """Nothing is in the runtime, and no layer is known to layerhold."""
        self.base = None
        if self.images():
            self.remove_but(set())
            # For a minute ext4 without a journal passes over each inode that was just freed whenever it makes a file,
            # and an image has tens of thousands: the next one would be taken in more slowly.
            os.sync()
            time.sleep(60)
        self.place.cold()

    def take_base_in(self):
        """The base image is in the runtime, as layerhold makes it and as nixpkgs does."""
        if self.base is not None:
            return
        self.empty()
        self.place.warm()
        run(self.place.layerhold("base", "--runtime", self.program))
        run(f"{self.place.stream_layered_image('base')} | {self.program} load -q")
        for name in ["bench", "stream"]:
            run(f"{self.program} tag {name}:latest {name}:base")
        self.base = self.images()

    def with_base(self):
        """The runtime has the base image and nothing else; layerhold knows its layers and no others."""
        self.remove_but(self.base)
        for name in ["bench", "stream"]:
            run(f"{self.program} tag {name}:base {name}:latest")
        self.place.warm()


def runtime_jobs(place):
    """For each runtime: nothing changed, a leaf package changed, one added, and from nothing."""
    jobs = []
    for program in ["docker", "podman"]:
        runtime = Runtime(program, place)
        ours = ["--runtime", program]
        load = f"{program} load -q -i"
        inspect = f"{program} image inspect bench:latest"
        full, base = quoted([place.archive("leaf")]), quoted([place.archive("base")])
        nixpkgs = {v: f"{place.stream_layered_image(v)} | {program} load -q" for v in ["base", "leaf", "added"]}
        layout = f"oci:{place.layout('leaf')}:{layout_name(place.layout('leaf'))}"
        if program == "docker":
            own = [
                Contender("docker load of a ready thin archive", f"{load} {quoted([place.thin_archive('leaf')])}",
                          runtime.with_base),
                Contender("docker load of the whole archive", f"{load} {full}", runtime.with_base, rounds=3),
                Contender("skopeo copy of the whole archive", quoted(
                    ["skopeo", "--insecure-policy", "copy", "-q", f"docker-archive:{place.archive('leaf')}",
                     "docker-daemon:bench:latest"]) + " --dest-daemon-host $DOCKER_HOST", runtime.with_base, rounds=2),
            ]
            builds = ["DOCKER_BUILDKIT=0 docker build"]
        else:
            own = [
                Contender("podman pull of a ready layout", f"podman pull -q {quoted([layout])}", runtime.with_base),
                Contender("podman load of the whole archive", f"{load} {full}", runtime.with_base, rounds=5),
                Contender("skopeo copy of a ready layout", quoted(
                    ["skopeo", "--insecure-policy", "copy", "-q", layout, "containers-storage:localhost/bench:latest"]),
                    runtime.with_base, rounds=5),
            ]
            # What buildah makes lies in Podman's storage.
            builds = ["podman build", "buildah build"]
        jobs += [
            Job(f"unchanged-{program}", [
                Contender(OURS, place.layerhold("base", *ours)),
                Contender(f"{program} image inspect", inspect),
            ], 21, lambda runtime=runtime: (runtime.take_base_in(), runtime.with_base())),
            Job(f"leaf-{program}", [
                Contender(OURS, place.layerhold("leaf", *ours), runtime.with_base),
                *own,
                Contender(f"{STREAM} | {program} load", nixpkgs["leaf"], runtime.with_base, rounds=2),
                *(copied(build, place.context("leaf"), runtime.with_base) for build in builds),
            # Podman takes half as long again, or half as long, from one time to the next.
            ], 31 if program == "podman" else 11, runtime.take_base_in),
            Job(f"added-{program}", [
                Contender(OURS, place.layerhold("added", *ours), runtime.with_base),
                Contender(PREVIOUS, place.layerhold("added", *ours, "--previous"), runtime.with_base),
                Contender(f"{program} load of the whole archive", f"{load} {quoted([place.archive('added')])}",
                          runtime.with_base, rounds=2),
                Contender(f"{STREAM} | {program} load", nixpkgs["added"], runtime.with_base, rounds=2),
            ], setup=runtime.take_base_in),
            Job(f"cold-{program}", [
                Contender(OURS, place.layerhold("base", *ours), runtime.empty),
                Contender(f"{program} load of the whole archive", f"{load} {base}", runtime.empty),
                Contender(f"{STREAM} | {program} load", nixpkgs["base"], runtime.empty),
                *(copied(build, place.context("base"), runtime.empty) for build in builds),
            ], 3, rotated=True),
        ]
    return jobs


def copied(build, context, prepare):
    """The closure copied into an image that is based on none."""
    name = build.removeprefix("DOCKER_BUILDKIT=0 ")
    command = f"{build} -q --no-cache -t built {quoted([context])}"
    return Contender(f"{name}, the closure copied", command, prepare, rounds=1)


def layout_name(layout):
    """What a layout calls the image in it."""
    image = json.loads((layout / "index.json").read_text())["manifests"][0]
    return image["annotations"]["org.opencontainers.image.ref.name"]
