"""How long the NAR of a store path would be (Dolstra, "The Purely Functional Software Deployment Model", figure 5.2)."""

import posixpath


def nar_size(members, root):
    """The bytes of the NAR of the tree at `root` among the members of a tar."""
    children, nodes = {}, {}
    for member in members:
        name = member.name.rstrip("/")
        if name == root or name.startswith(f"{root}/"):
            nodes[name] = member
            children.setdefault(posixpath.dirname(name), []).append(name)

    def node(name):
        member = nodes[name]
        if member.issym():
            return words("(", "type", "symlink", "target", member.linkname, ")")
        if member.isfile():
            executable = words("executable", "") if member.mode & 0o100 else 0
            return words("(", "type", "regular", "contents", ")") + executable + 8 + padded(member.size)
        entries = sum(
            words("entry", "(", "name", posixpath.basename(child), "node", ")") + node(child)
            for child in children.get(name, [])
        )
        return words("(", "type", "directory", ")") + entries

    return words("nix-archive-1") + node(root)


def words(*texts):
    """The bytes of strings, each with its length before it and zeros after it."""
    return sum(8 + padded(len(text.encode("utf-8", "surrogateescape"))) for text in texts)


def padded(length):
    """The next multiple of eight."""
    return -(-length // 8) * 8
