# The packages of the test store, made of programs of the machine that builds them: patched to find their libraries in
# the store, as packages of Nix are.
let
  machine = import ./libraries.nix;

  # script runs in bash with the machine's programs; args become variables. Its last command is a builtin: bash would
  # exec another, coreutils' programs close their output before they exit, and Nix then kills what it takes for ended.
  derive = name: args: script:
    derivation ({
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/bash";
      args = [ "-euc" "${script}\n:" ];
      PATH = "/usr/bin:/bin";
    } // args);

  loader = "${glibc}/lib/${baseNameOf machine.loader}";

  glibc = derive "glibc-2.36" { inherit (machine) libc; loader = machine.loader; } ''
    mkdir -p $out/lib $out/share/locale
    cp -L $loader $out/lib/
    for name in libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libresolv.so.2; do
      [ ! -e $libc/$name ] || cp -L $libc/$name $out/lib/
    done
    ln -s ../lib $out/share/lib
  '';

  library = soname: { file, needs }:
    derive "${soname}-lib" {
      inherit soname file;
      rpath = builtins.concatStringsSep ":" (map (path: "${path}/lib") ([ glibc ] ++ map (need: libraries.${need}) needs));
    } ''
      mkdir -p $out/lib
      cp -L $file $out/lib/$soname
      chmod u+w $out/lib/$soname
      patchelf --set-rpath $rpath $out/lib/$soname
    '';
  libraries = builtins.mapAttrs library machine.libraries;

  # Finds the libraries that a program needs, and writes down where they are.
  patch = ''
    patch() {
      local rpath=$glibc/lib need at
      for need in $(patchelf --print-needed "$1"); do
        for at in $libraries; do [ ! -e $at/lib/$need ] || rpath=$rpath:$at/lib; done
      done
      chmod u+w "$1"
      patchelf --set-interpreter $loader --set-rpath $rpath "$1"
      chmod u-w "$1"
    }
  '';
  linked = { inherit glibc loader; libraries = builtins.attrValues libraries; };

  bash = derive "bash-5.2" linked (patch + ''
    mkdir -p $out/bin
    cp /bin/bash $out/bin/bash
    patch $out/bin/bash
    ln -s bash $out/bin/sh
  '');

  coreutils = derive "coreutils-9.1" linked (patch + ''
    mkdir -p $out/bin
    for tool in cat chmod cp cut date dirname echo env false head id ln ls mkdir mv printf pwd readlink rm sleep sort \
      stat tail touch tr true uname wc whoami; do
      cp -L /usr/bin/$tool $out/bin/
      patch $out/bin/$tool
    done
  '');

  # A package with several outputs, and a variant of it: what a small change to one package looks like.
  makeHello = greeting: derive "hello-2.12" (linked // { outputs = [ "out" "doc" ]; inherit greeting; }) (patch + ''
    mkdir -p $out/bin $out/share/hello $doc/share/doc/hello
    printf '#include <stdio.h>\nint main(void) { puts("%s"); return 0; }\n' "$greeting" >hello.c
    cc -O1 -o $out/bin/hello hello.c
    patch $out/bin/hello
    echo "$greeting" >$out/share/hello/greeting
    echo "hello greets. Its program is $out/bin/hello." >$doc/share/doc/hello/README
  '');
  hello = makeHello "Hello, world!";
  hello-revised = makeHello "Hello, revised world!";

  # Two packages that both want to own bin/hello.
  hello-rival = derive "hello-rival-1" { inherit bash; } ''
    mkdir -p $out/bin
    printf '#!%s/bin/bash\necho "Hello from the rival"\n' $bash >$out/bin/hello
    chmod +x $out/bin/hello
  '';

  greeter = derive "greeter-1" { inherit bash hello; } ''
    mkdir -p $out/bin $out/etc/profile.d
    printf '#!%s/bin/bash\necho "greeter says: $(%s/bin/hello)"\n' $bash $hello >$out/bin/greeter
    chmod +x $out/bin/greeter
    echo 'export GREETER_PROFILE="$FLOX_ENV"' >$out/etc/profile.d/0500_greeter.sh
  '';

  cacert = derive "nss-cacert-3" { } ''
    mkdir -p $out/etc/ssl/certs
    printf -- '-----BEGIN CERTIFICATE-----\ntest\n-----END CERTIFICATE-----\n' >$out/etc/ssl/certs/ca-bundle.crt
  '';

  # Whatever a store path may hold that is easily got wrong.
  oddities = derive "oddities-1" { } ''
    mkdir -p $out/empty-directory $out/bin
    : >$out/empty-file
    printf 'x' >"$out/a name with spaces, ünïcödé and a
    newline"
    printf 'x' >$out/$'not-utf-8-\xff\xfe'
    long=$(printf 'n%.0s' {1..200})
    mkdir -p $out/$long/$long && printf 'deep' >$out/$long/$long/$long
    mkdir -p $out/$(printf 'd/%.0s' {1..60}) && printf 'deeper' >$out/$(printf 'd/%.0s' {1..60})file
    ln -s empty-file $out/link
    ln -s empty-directory $out/link-to-directory
    ln -s /nowhere/at/all $out/dangling-link
    ln -s $out/empty-file $out/link-to-itself
    ln -s $(printf 't%.0s' {1..300}) $out/link-with-a-long-target
    printf 'one' >$out/hard-link-1 && ln $out/hard-link-1 $out/hard-link-2
    printf '#!/bin/sh\n' >$out/bin/set-user-id && chmod 4755 $out/bin/set-user-id
    printf 'secret' >$out/private && chmod 0600 $out/private
    printf 'odd' >$out/group-executable && chmod 0654 $out/group-executable
  '';

  # A store path that is a file, and one that is a link.
  single-file = derive "single-file.txt" { } ''printf 'alone' >$out'';
  single-link = derive "single-link" { target = single-file; } ''ln -s $target $out'';

  # Some megabytes that compress about as well as programs do.
  bulk = derive "bulk-1" { } ''
    mkdir -p $out/share
    seq 1 900000 >$out/share/numbers
    seq 1 7 900000 | sort >$out/share/more-numbers
  '';

  # The same files on every machine: hashes in tests may depend on them.
  plain = derive "plain-1" { } ''
    mkdir -p $out/bin $out/share/plain
    printf '#!/bin/sh\necho plain\n' >$out/bin/plain && chmod +x $out/bin/plain
    printf 'text\n' >$out/share/plain/text
    ln -s text $out/share/plain/link
  '';
in rec {
  packages = {
    inherit glibc bash coreutils hello hello-revised hello-rival greeter cacert oddities single-file single-link bulk
      plain;
    hello-doc = hello.doc;
    hello-revised-doc = hello-revised.doc;
  };
  outputs = builtins.mapAttrs (name: package:
    builtins.listToAttrs (map (output: { name = output; value = package.${output}.outPath; }) (package.outputs or [ "out" ])))
    packages;
}
