"""How many bytes of an image are new after a change: counted, not timed."""

import json
import tarfile

from corpus import AGAIN, VARIANTS
from nar import nar_size
from place import MOST_LAYERS, run
from stream_layered_image import popularity_layers


def count_new_bytes(place, results):
    """For each variant: bytes in changed store paths, in new layers, and from the lowest new layer upwards; also after
    the image before."""
    if results.notes("plan"):
        return
    print("plan:", flush=True)
    base = place.store.closure("base")
    known = {info.path for info in base}
    sizes = {info.path: info.nar_size for info in place.store.infos().values()}
    layers_of_base = image_layers(place, "base")
    popular_base = popularity_layers(base, MOST_LAYERS)
    for variant in VARIANTS:
        if variant == "base" or variant in AGAIN.values():
            continue
        closure = place.store.closure(variant)
        changed = [info for info in closure if info.path not in known]
        layers = image_layers(place, variant)
        place.warm()
        after_base = described_layers(place, variant, "--previous")
        again = described_layers(place, AGAIN[variant], "--previous") if variant in AGAIN else None
        popular = popularity_layers(closure, MOST_LAYERS)
        popular_sizes = [sum(sizes[path] for path in paths) for paths in popular]
        as_tar, environment = sizes_as_tar(place, variant), environment_size(place)
        # What the base has not, the environment among it.
        as_tar = {path: size for path, size in as_tar.items() if f"/{path}" not in known}
        line = {
            "variant": variant,
            "changed_paths": len(as_tar),
            "changed": sum(info.nar_size for info in changed) + environment,
            "changed_as_tar": sum(as_tar.values()),
            "environment": environment,
            "layers": len(layers),
            "new": new_bytes(layers_of_base, layers),
            "above": bytes_above(layers_of_base, layers),
            "previous_new": new_bytes(layers_of_base, after_base),
            "previous_above": bytes_above(layers_of_base, after_base),
            "previous_more": total(after_base) - total(layers),
            "again_new": None if again is None else new_bytes(after_base, again),
            "again_above": None if again is None else bytes_above(after_base, again),
            "popularity_new": sum(s for paths, s in zip(popular, popular_sizes) if paths not in popular_base),
        }
        results.add(note="plan", **line)
        print(f"  {line}", flush=True)


def image_layers(place, variant):
    """The layers of the image, the bottom one first: digest and size."""
    place.warm()
    return described_layers(place, variant)


def described_layers(place, variant, *options):
    """The same, with what layerhold knows now."""
    described = json.loads(run(place.layerhold(variant, "--json", "-f", "/dev/null", *options)))
    return [(layer["digest"], layer["size"]) for layer in described["layers"]]


def sizes_as_tar(place, variant):
    """The bytes of each store path of the image where it is a layer of its own, headers and all. Leaves the archive."""
    place.warm()
    run(place.layerhold(variant, "-f", place.out))
    sizes = {}
    with tarfile.open(place.out) as archive:
        for layer in json.load(archive.extractfile("manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as members:
                for member in members:
                    path = store_path(member)
                    if path:
                        # A header of PAX belongs to the member that it stands before.
                        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        sizes[path] = sizes.get(path, 0) + end - member.offset
    return sizes


def environment_size(place):
    """The bytes, as a NAR, of the store path that the environment itself is: each change makes another one of it."""
    with tarfile.open(place.out) as archive:
        top = json.load(archive.extractfile("manifest.json"))[0]["Layers"][-1]
        with tarfile.open(fileobj=archive.extractfile(top)) as layer:
            members = layer.getmembers()
    roots = {store_path(member) for member in members} - {None}
    if len(roots) != 1:
        raise SystemExit(f"scripts/bench: the top layer holds {len(roots)} store paths, not one")
    return nar_size(members, roots.pop())


def store_path(member):
    """The store path that a member is in, `nix/store/...`; `None` for others."""
    parts = member.name.split("/")
    return "/".join(parts[:3]) if parts[:2] == ["nix", "store"] and len(parts) > 2 and parts[2] else None


def total(layers):
    """The bytes of all layers."""
    return sum(size for _, size in layers)


def new_bytes(before, after):
    """Bytes in layers that were not there."""
    return sum(size for digest, size in after if digest not in {digest for digest, _ in before})


def bytes_above(before, after):
    """Bytes from the lowest new layer upwards."""
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    return sum(size for _, size in after[same:])
