# The store paths of the benchmarks: each Debian package unpacked into one, referring to those that it depends on.
# packages.json and variants.json beside this file are made by corpus.py.
let
  packages = builtins.fromJSON (builtins.readFile ./packages.json);
  variants = builtins.fromJSON (builtins.readFile ./variants.json);

  # The packages in changed get that revision, and so another store path, as does all that depends on them.
  build = changed: changedTo:
    let
      package = name: { version, archive, sha256, needs }: derivation {
        name = "${name}-${version}";
        inherit archive sha256;
        needs = map (need: built.${need}) needs;
        revision = if builtins.elem name changed then changedTo else 1;
        system = builtins.currentSystem;
        builder = "/bin/bash";
        PATH = "/usr/bin:/bin";
        # The last command is a builtin: bash would exec another, coreutils' programs close their output before they
        # exit, and Nix then kills what it takes for ended.
        args = [ "-euc" ''
          mkdir -p $out/nix-support
          dpkg-deb --fsys-tarfile $archive |
            tar -x -C $out --no-same-owner --delay-directory-restore --transform 'flags=rh;s,^\./usr/,./,'
          [ ! -d $out/usr ] || rmdir $out/usr
          echo "$needs" >$out/nix-support/propagated
          echo "$revision" >$out/nix-support/revision
          :
        '' ];
      };
      built = builtins.mapAttrs package packages;
    in built;
in rec {
  roots = builtins.mapAttrs (variant: { roots, changed, revision }:
    let built = build changed revision;
    in builtins.listToAttrs (map (name: { inherit name; value = built.${name}; }) roots)) variants;
  all = builtins.concatMap builtins.attrValues (builtins.attrValues roots);
  paths = builtins.mapAttrs (variant: builtins.mapAttrs (name: package: package.outPath)) roots;
}
