#!@bash@
# Runs a command, or a shell, and the environment's services beside it, inside an activation that flox makes.

set +o posix
_flox_args=("$@")
set --
source @services@

if ((${#_flox_args[@]} == 0)); then
  if [[ -t 0 ]]; then
    _flox_shell_beside_services @bash@ --noprofile --rcfile @bashrc@ -i
  fi
  export BASH_ENV=@bashrc@
  _flox_shell_beside_services @bash@ --noprofile --norc
fi
if [[ ${_flox_args[0]} == */* ]] || type -P -- "${_flox_args[0]}" >/dev/null; then
  _flox_beside_services exec -- "${_flox_args[@]}"
fi
if [[ $(type -t -- "${_flox_args[0]}") == builtin ]]; then
  _flox_beside_services "${_flox_args[@]}"
fi
printf '%s\n' "✘ ERROR: '${_flox_args[0]}' is not a command in the environment '${FLOX_ENV_DESCRIPTION-}'" >&2
exit 127
