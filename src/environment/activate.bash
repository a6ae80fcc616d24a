#!@bash@
# Activates the environment @name@, then becomes the command that is given, or a shell.
#
# Builtins only: the image may have no other program. Nothing is written anywhere.
# Names that begin _flox are this script's own.

set +o posix # otherwise no function could stand before the special builtins 'exit' and 'exec'
shopt -s globasciiranges
# As process 1 bash would not hear these; a hook that takes its time must not hold up 'docker stop'.
trap 'trap - EXIT; builtin exit 143' TERM
trap 'trap - EXIT; builtin exit 130' INT

_flox_args=("$@")
set --

# What runs before the command leaves the command's input alone, but may ask on a terminal.
if [[ -t 0 ]]; then exec {_flox_in}<&0; else exec {_flox_in}</dev/null; fi

# _flox_prepend NAME ENTRY: puts ENTRY first into a list with colons, once.
_flox_prepend() {
  local _flox_list=":${!1-}:"
  while [[ $_flox_list == *":$2:"* ]]; do _flox_list=${_flox_list/":$2:"/:}; done
  _flox_list=${_flox_list#:}
  _flox_list=${_flox_list%:}
  export "$1=$2${_flox_list:+:$_flox_list}"
}

# 1. The environment itself.
# Where the image's own Env already has what [vars] make of a list, [vars] begin again from what they began with.
@restore@
export FLOX_ENV=@env@
export FLOX_ENV_CACHE=/tmp
export FLOX_ENV_DESCRIPTION=@name@
export FLOX_ENV_DIRS=@env@
export FLOX_PROMPT_ENVIRONMENTS=floxenv
_flox_prepend PATH @env@/sbin
_flox_prepend PATH @env@/bin
_flox_prepend XDG_DATA_DIRS @env@/share
# An empty entry stands for the default directories: man(1) takes it anywhere, info(1) only at the end.
_flox_prepend MANPATH @env@/share/man
[[ :$MANPATH: == *::* ]] || MANPATH+=:
_flox_prepend INFOPATH @env@/share/info
[[ $INFOPATH == *: ]] || INFOPATH+=:
if [[ @mode@ == dev ]]; then
  _flox_prepend CPATH @env@/include
  _flox_prepend LIBRARY_PATH @env@/lib
  _flox_prepend PKG_CONFIG_PATH @env@/share/pkgconfig
  _flox_prepend PKG_CONFIG_PATH @env@/lib/pkgconfig
  _flox_prepend ACLOCAL_PATH @env@/share/aclocal
fi
@languages@for _flox_file in @profile_d@; do
  source "$_flox_file" <&"$_flox_in"
done

# 2. [vars].
source @env@/activate.d/envrc <&"$_flox_in"

# 3. The hook. What it exports, its working directory and its limits hold from here on, so it runs in this very shell;
# to end the shell, or to replace it, would end the activation.
_flox_ended() {
  printf '%s\n' "✘ ERROR: 'hook.on-activate' $1" "hint: $2" >&2
  trap - EXIT
  builtin exit "${3:-1}"
}
if [[ -e @env@/activate.d/hook-on-activate ]]; then
  exit() {
    local _flox_status=$?
    [[ $BASHPID == "$$" ]] || builtin exit "${1-$_flox_status}"
    _flox_ended "calls 'exit', which would end the activation" "use 'return' instead"
  }
  exec() {
    if [[ $BASHPID != "$$" && $# != 0 ]]; then builtin exec "$@"; fi
    _flox_ended "calls 'exec', which would end the activation" "leave 'exec' out, and use 'return' to end the hook early"
  }
  trap '_flox_status=$?
    ((_flox_status)) || _flox_status=1
    _flox_ended "ended the shell (status $_flox_status)" \
      "a command failed under '\''set -e'\'', or a variable is missing; use '\''return'\'' to end the hook early" \
      "$_flox_status"' EXIT
  source @env@/activate.d/hook-on-activate 1>&2 <&"$_flox_in"
  _flox_status=$?
  set +e +u +x +f +o noclobber +o pipefail +o posix
  trap - EXIT
  unset -f exit exec
  if ((_flox_status)); then
    _flox_ended "failed (status $_flox_status)" "a hook that has nothing to do ends with 'return 0'" "$_flox_status"
  fi
fi

@services@# 4. The shell, which runs the profile scripts itself.
if ((${#_flox_args[@]} == 0)); then
  exec {_flox_in}<&-
  if [[ -t 0 ]]; then
    @shell@ @bash@ --noprofile --rcfile @env@/activate.d/bashrc -i
  fi
  export BASH_ENV=@env@/activate.d/bashrc
  @shell@ @bash@ --noprofile --norc
fi

# Or the command.
for _flox_file in @env@/activate.d/profile-common @env@/activate.d/profile-bash; do
  if [[ -e $_flox_file ]]; then source "$_flox_file" <&"$_flox_in"; fi
done
set +e +u +x +f +o noclobber +o pipefail +o posix
exec {_flox_in}<&-

# _flox_expand TEXT: TEXT with $NAME and ${NAME} replaced, into _flox_word. Nothing else is special: no command runs,
# nothing is split, '$1' and a lone '$' stay. '\$NAME' is '$NAME'.
_flox_expand() {
  local _flox_rest=$1 _flox_head _flox_name _flox_ref
  _flox_word=
  while [[ $_flox_rest == *\$* ]]; do
    _flox_head=${_flox_rest%%\$*}
    _flox_rest=${_flox_rest#*\$}
    _flox_name=$_flox_rest
    if [[ $_flox_rest == \{*\}* ]]; then
      _flox_name=${_flox_rest#\{}
      _flox_name=${_flox_name%%\}*}
      _flox_ref={$_flox_name}
    else
      _flox_name=${_flox_rest%%[!A-Za-z0-9_]*}
      _flox_ref=$_flox_name
    fi
    case $_flox_name in
      '' | [!A-Za-z_]* | *[!A-Za-z0-9_]*)
        _flox_word+=$_flox_head\$
        continue
        ;;
    esac
    _flox_rest=${_flox_rest#"$_flox_ref"}
    case $_flox_head,$_flox_name in
      *\\,*) _flox_word+=${_flox_head%\\}\$$_flox_ref ;;
      *,_flox*) _flox_word+=$_flox_head ;;
      *) _flox_word+=$_flox_head${!_flox_name-} ;;
    esac
  done
  _flox_word+=$_flox_rest
}

_flox_words=()
# Where a shell is given its script with -c, the script is left alone: that shell expands it itself, with variables
# of its own ('for', '$1') that are none of ours.
_flox_script=no
for _flox_arg in "${_flox_args[@]}"; do
  if [[ $_flox_script == next && $_flox_arg != [-+]* ]]; then
    _flox_word=$_flox_arg
    _flox_script=no
  else
    _flox_expand "$_flox_arg"
  fi
  if ((${#_flox_words[@]} == 0)); then
    case ${_flox_word##*/} in
      sh | bash | dash | ash | ksh | mksh | zsh) _flox_script=options ;;
    esac
  else
    case $_flox_script,$_flox_word in
      options,-[!-]*c* | options,-c*) _flox_script=next ;;
      options,--* | options,[-+]*) ;;
      options,*) [[ ${_flox_words[-1]} == [-+][oO] ]] || _flox_script=no ;;
    esac
  fi
  _flox_words+=("$_flox_word")
done

trap - TERM INT
# A function of a profile script, as in a shell; else a program; else a builtin, for images without coreutils.
if declare -F -- "${_flox_words[0]}" >/dev/null; then
  @beside@"${_flox_words[@]}"
  exit
fi
if [[ ${_flox_words[0]} == */* ]] || type -P -- "${_flox_words[0]}" >/dev/null; then
  @beside@exec -- "${_flox_words[@]}"
fi
if [[ $(type -t -- "${_flox_words[0]}") == builtin ]]; then
  @beside@"${_flox_words[@]}"
  exit
fi
printf '%s\n' "✘ ERROR: '${_flox_words[0]}' is not a command in the environment '$FLOX_ENV_DESCRIPTION'" >&2
exit 127
