# The environment's services, which process-compose runs beside the command. Sourced when the variables are set; the
# arguments are in _flox_args.
#
# Builtins only, as in the activation. What process-compose and the services say goes into files in /tmp; where the
# services are all that the container runs, to its standard output.

_flox_socket=/tmp/services.sock
_flox_child=
_flox_early=

# Becomes process-compose.
_flox_process_compose() {
  export NO_COLOR=1
  if [[ -n ${_flox_in-} ]]; then exec {_flox_in}<&-; fi
  exec @process-compose@ up -f @config@ -u "$_flox_socket" -L /tmp/process-compose.log --disable-dotenv --tui=false </dev/null
}

_flox_services_failed() {
  printf '%s\n' "✘ ERROR: the services $1" >&2
  local _flox_lines=()
  if [[ -s /tmp/services.log ]]; then
    mapfile -t _flox_lines </tmp/services.log
    _flox_lines=("${_flox_lines[@]:${#_flox_lines[@]} > 10 ? ${#_flox_lines[@]} - 10 : 0}")
    printf '  %s\n' "${_flox_lines[@]}" >&2
  fi
  if [[ -n $2 ]]; then printf '%s\n' "hint: $2" >&2; fi
  builtin exit 1
}

# Starts process-compose and waits until it listens. In a container where it does already, as for 'docker exec' of the
# entrypoint, nothing is started, and nothing stopped at the end.
_flox_start_services() {
  if [[ -S $_flox_socket ]] && NO_COLOR=1 @process-compose@ process list -u "$_flox_socket" >/dev/null 2>&1; then
    return
  fi
  # Also the moment that a socket left over from an earlier run of the container is older than.
  local _flox_began=/tmp/services.began _flox_clock _flox_end=$((SECONDS + 30)) _flox_status
  if ! { : >"$_flox_began" && : >/tmp/services.log; } 2>/dev/null; then
    _flox_services_failed "cannot start: their files in /tmp cannot be written" "on a read-only root, give it a /tmp: --tmpfs /tmp"
  fi
  # A process group of its own: what a terminal sends is for the command.
  set -m
  (_flox_process_compose) >>/tmp/services.log 2>&1 &
  _flox_services=$!
  set +m
  # A pipe on which nothing comes: to read from it with a limit is to wait.
  exec {_flox_clock}<> <(:)
  until [[ -S $_flox_socket && ! $_flox_socket -ot $_flox_began ]]; do
    if ! kill -0 "$_flox_services" 2>/dev/null; then
      wait "$_flox_services" 2>/dev/null
      _flox_status=$?
      _flox_services=
      # All of them may have done their work.
      ((_flox_status == 0)) || _flox_services_failed "did not start: process-compose ended with status $_flox_status" ""
      break
    fi
    ((SECONDS < _flox_end)) || _flox_services_failed "did not start: process-compose does not listen after 30 seconds" ""
    read -r -t 0.02 -u "$_flox_clock" || :
  done
  exec {_flox_clock}<&-
}

_flox_stop_services() {
  trap '' HUP INT QUIT TERM
  if [[ -z ${_flox_services-} ]]; then return; fi
  kill -s TERM "$_flox_services" 2>/dev/null
  while kill -0 "$_flox_services" 2>/dev/null; do wait "$_flox_services"; done 2>/dev/null
  _flox_services=
}

# Sends a signal on to the command; one that comes before there is a command is kept for it.
_flox_signal() {
  if [[ -n $_flox_child ]]; then kill -s "$1" "$_flox_child" 2>/dev/null; else _flox_early=$1; fi
}

# _flox_supervise SIGNALS COMMAND...: runs the command as a child, so that the services can be stopped when it has ended,
# and ends with its status. SIGNALS is how signals that come are sent on: 'same', as 'HUP', as 'TERM'.
_flox_supervise() {
  local _flox_how=$1 _flox_name
  shift
  for _flox_name in HUP INT QUIT TERM USR1 USR2 @stop-signal@; do
    case $_flox_how,$_flox_name in
      same,*) trap "_flox_signal $_flox_name" "$_flox_name" ;;
      *) trap "_flox_signal $_flox_how" "$_flox_name" ;;
    esac
  done 2>/dev/null
  # What is typed on a terminal reaches the command without help.
  if [[ -t 0 ]]; then trap : INT QUIT; fi
  # Without job control bash ignores these in the background, unless it becomes another program.
  (
    trap - INT QUIT
    "$@"
  ) <&0 &
  _flox_child=$!
  if [[ -n $_flox_early ]]; then _flox_signal "$_flox_early"; fi
  # A signal ends the builtin, too; then it waits again. The status is known for good only once the child is gone.
  until
    wait "$_flox_child"
    ! kill -0 "$_flox_child"
  do :; done 2>/dev/null
  wait "$_flox_child" 2>/dev/null
  local _flox_status=$?
  _flox_child=
  builtin exit "$_flox_status"
}

_flox_beside_services() { _flox_supervise same "$@"; }

# An interactive bash pays no attention to TERM; HUP ends it, and what it runs.
_flox_shell_beside_services() {
  if [[ -t 0 ]]; then _flox_supervise HUP exec "$@"; else _flox_supervise same exec "$@"; fi
}

# Nobody gives commands: the services are what the container is for.
if ((${#_flox_args[@]} == 0)) && [[ ! -t 0 && ! -p /dev/fd/0 && ! -S /dev/fd/0 && ! -f /dev/fd/0 ]]; then
  _flox_supervise TERM _flox_process_compose
fi

trap 'builtin exit 143' TERM
trap 'builtin exit 130' INT
trap _flox_stop_services EXIT
_flox_start_services
