# The beginning of every shell in the environment: interactive ones, and those that read commands from their input.
unset BASH_ENV
if [[ $- == *i* && -r ~/.bashrc ]]; then
  source ~/.bashrc
  case :$PATH: in
    *:"$FLOX_ENV/bin":*) ;;
    *) export PATH=$FLOX_ENV/bin:$FLOX_ENV/sbin:$PATH ;;
  esac
fi
if [[ $- == *i* && -n ${FLOX_PROMPT_ENVIRONMENTS-} ]]; then
  PS1="flox [$FLOX_PROMPT_ENVIRONMENTS] ${PS1-\\s-\\v\\$ }"
fi
# /var/empty stays empty.
if [[ ${HISTFILE-} == /var/empty/* ]]; then unset HISTFILE; fi
if [[ -e $FLOX_ENV/activate.d/profile-common ]]; then source "$FLOX_ENV/activate.d/profile-common"; fi
if [[ -e $FLOX_ENV/activate.d/profile-bash ]]; then source "$FLOX_ENV/activate.d/profile-bash"; fi
# Programs that are replaced are found at once.
set +h
