"""How many bytes of an image are new after a change: counted, not timed."""

import json
import tarfile

from corpus import VARIANTS
from nar import nar_size
from place import MOST_LAYERS, run
from stream_layered_image import popularity_layers


def count_new_bytes(place, results):
    """For each variant: bytes in changed store paths, in new layers, and from the lowest new layer upwards."""
    if results.notes("plan"):
        return
    print("plan:", flush=True)
    base = place.store.closure("base")
    known = {info.path for info in base}
    sizes = {info.path: info.nar_size for info in place.store.infos().values()}
    layers_of_base = image_layers(place, "base")
    popular_base = popularity_layers(base, MOST_LAYERS)
    for variant in VARIANTS:
        if variant == "base":
            continue
        closure = place.store.closure(variant)
        changed = [info for info in closure if info.path not in known]
        layers = image_layers(place, variant)
        popular = popularity_layers(closure, MOST_LAYERS)
        popular_sizes = [sum(sizes[path] for path in paths) for paths in popular]
        environment = environment_size(place, variant)
        line = {
            "variant": variant,
            "changed_paths": len(changed) + 1,
            "changed": sum(info.nar_size for info in changed) + environment,
            "environment": environment,
            "layers": len(layers),
            "new": new_bytes(layers_of_base, layers),
            "above": bytes_above(layers_of_base, layers),
            "popularity_new": sum(s for paths, s in zip(popular, popular_sizes) if paths not in popular_base),
        }
        results.add(note="plan", **line)
        print(f"  {line}", flush=True)


def image_layers(place, variant):
    """The layers of the image, the bottom one first: digest and size."""
    place.warm()
    described = json.loads(run(place.layerhold(variant, "--json", "-f", "/dev/null")))
    return [(layer["digest"], layer["size"]) for layer in described["layers"]]


def environment_size(place, variant):
    """The bytes of the store path that the environment itself is: each change makes another one of it."""
    place.warm()
    run(place.layerhold(variant, "-f", place.out))
    with tarfile.open(place.out) as archive:
        top = json.load(archive.extractfile("manifest.json"))[0]["Layers"][-1]
        with tarfile.open(fileobj=archive.extractfile(top)) as layer:
            members = layer.getmembers()
    roots = {"/".join(member.name.split("/")[:3]) for member in members if member.name.startswith("nix/store/")}
    if len(roots) != 1:
        raise SystemExit(f"scripts/bench: the top layer of '{variant}' holds {len(roots)} store paths, not one")
    return nar_size(members, roots.pop())


def new_bytes(before, after):
    """Bytes in layers that were not there."""
    return sum(size for digest, size in after if digest not in {digest for digest, _ in before})


def bytes_above(before, after):
    """Bytes from the lowest new layer upwards."""
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    return sum(size for _, size in after[same:])
