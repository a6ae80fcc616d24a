"""Jobs whose result is an image in a registry, with and without a cache that machines share.

Seconds are taken without anything between client and registry; then each client pushes once more, through a proxy that
counts.
"""

import shlex
import shutil

from measure import OURS, Contender, Job
from place import quoted, remove, run
from registry import Counter, Registry
from runtime_jobs import layout_name

CODEC = ["--compression", "zstd:3"]


class Pusher:
    """A client that pushes the corpus's images to a repository of its own."""

    def __init__(self, name, place, host):
        self.name, self.place, self.host = name, place, host

    def command(self, variant):
        """The command that pushes a variant."""

    def begin(self):
        """Nothing was pushed before, as far as the client knows."""

    def put_aside(self, name):
        """Keeps what the client remembers."""

    def bring_back(self, name):
        """The client remembers what it did then."""

    def reference(self, variant="base"):
        """Where a variant goes."""
        return f"{self.host}/bench/{variant}:latest"


class Ours(Pusher):
    """layerhold, whose layer store knows nothing, or all layers of the base image, or those of all variants."""

    def __init__(self, name, place, host, known=()):
        super().__init__(name, place, host)
        self.known = known

    def command(self, variant):
        return self.place.layerhold(variant, *CODEC, "--push", self.reference()) + " >/dev/null"

    def begin(self):
        self.place.cold()
        for variant in self.known:
            run(self.place.layerhold(variant, *CODEC, "-f", self.place.out))
        self.place.remove_output()

    def put_aside(self, name):
        remove(self.place.made / name)
        shutil.copytree(self.place.cache, self.place.made / name)

    def bring_back(self, name):
        self.place.cold()
        shutil.copytree(self.place.made / name, self.place.cache)


class Skopeo(Pusher):
    """skopeo with ready layouts, whose layers are compressed already."""

    def command(self, variant):
        return quoted(["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false",
                       layout(self.place, variant), f"docker://{self.reference()}"])


class Podman(Pusher):
    """Podman with the images in its storage; it compresses what it pushes."""

    def command(self, variant):
        image = f"localhost/pushed:{variant}"
        # `set -e` ends the command if the image is not there and cannot be had.
        ready = f"podman image exists {image}"
        push = quoted(["podman", "push", "-q", "--tls-verify=false", "--compression-format", "zstd", image,
                       f"docker://{self.reference()}"])
        return f"{ready} && {push}"

    def begin(self):
        for variant in ["base", "leaf"]:
            pull = f"podman tag $(podman pull -q {shlex.quote(layout(self.place, variant))}) localhost/pushed:{variant}"
            run(f"podman image exists localhost/pushed:{variant} || {pull}")


def layout(place, variant):
    """The compressed image of a variant in an image layout, as skopeo and Podman name it."""
    folder = place.made / f"{variant}-compressed-layout"
    if not folder.exists():
        place.cold()
        run(place.layerhold(variant, *CODEC, "--layout", folder))
    return f"oci:{folder}:{layout_name(folder)}"


def run_pushes(place, bench):
    """Measures the pushes, counts what they send, and then does the same with a shared cache."""
    registry = Registry(place.work / "registry")
    bench.daemons.append(str(registry.process.pid))
    counter = Counter(registry)
    try:
        for counted in [False, True]:
            host = counter.host if counted else registry.host
            take = (lambda job: count(job, bench.results, counter)) if counted else bench.run
            for job in [*push_jobs(place, registry, host), *shared_jobs(place, registry, host)]:
                take(job)
    finally:
        counter.stop()
        bench.daemons.remove(str(registry.process.pid))
        registry.stop()
        remove(registry.folder)


def count(job, results, counter):
    """Runs each contender of a job once, and writes down what went through the proxy."""
    noted = {(note["job"], note["contender"]) for note in results.notes("traffic")}
    missing = [contender for contender in job.contenders if (job.name, contender.name) not in noted]
    if missing:
        job.setup()
    for contender in missing:
        contender.prepare()
        counter.take()
        run(contender.command)
        figures = counter.take()
        print(f"  {job.name}, {contender.name}: {figures['requests']} requests, {figures['sent'] >> 20} MiB", flush=True)
        results.add(note="traffic", job=job.name, contender=contender.name, **figures)


def push_jobs(place, registry, host):
    """From nothing, with nothing changed, with a leaf package changed."""
    clients = [
        Ours(OURS, place, host),
        Skopeo("skopeo copy of a ready layout", place, host),
        Podman("podman push", place, host),
    ]
    known = Ours(f"{OURS}, layers known", place, host, known=["base"])

    def base_pushed():
        for number, client in enumerate(clients):
            registry.empty()
            client.begin()
            run(client.command("base"))
            registry.put_aside(f"pushed-{number}")
            client.put_aside("pushed")

    def with_base(number):
        registry.bring_back(f"pushed-{number}")
        clients[number].bring_back("pushed")

    def job(name, variant):
        contenders = [
            Contender(client.name, client.command(variant), lambda number=number: with_base(number))
            for number, client in enumerate(clients)
        ]
        return Job(name, contenders, setup=base_pushed)

    def cold(client):
        client.begin()
        registry.empty()

    return [
        Job("cold-push", [
            Contender(client.name, client.command("base"), lambda client=client: cold(client))
            for client in [clients[0], known, *clients[1:]]
        ], 3),
        job("unchanged-push", "base"),
        job("leaf-push", "leaf"),
    ]


def shared_jobs(place, registry, host):
    """An empty machine, while the registry has what another machine has pushed and shared."""
    cache, image = f"{host}/bench/cache", f"{host}/bench/base"

    def fill():
        registry.empty()
        place.cold()
        run(place.layerhold("base", *CODEC, "--cache-to", cache, "--push", f"{image}:latest") + " >/dev/null")
        registry.put_aside("shared")

    def empty_machine():
        place.cold()
        registry.bring_back("shared")

    def contenders(*target):
        with_it = place.layerhold("base", *CODEC, "--cache-from", cache, *target)
        without = place.layerhold("base", *CODEC, *target)
        return [
            Contender(OURS, f"{with_it} >/dev/null", empty_machine),
            Contender(f"{OURS} without the cache", f"{without} >/dev/null", empty_machine),
        ]

    return [
        Job("shared-push", contenders("--push", f"{image}:next"), setup=fill),
        Job("shared-file", contenders("-f", place.out), setup=fill),
    ]
