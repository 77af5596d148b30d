# shellcheck shell=bash
# Parameters, messages, exit codes and --dry-run of all scripts.
# shellcheck disable=SC2034 # the scripts read what is set here

source "${BASH_SOURCE[0]%/*}/accelerators.sh"

readonly USER_MISTAKE=2 # as in jaxdistill
readonly TRY_AGAIN=75   # EX_TEMPFAIL of sysexits.h: no capacity, preempted, ssh that drops

# Empty arrays are an error in older versions under `set -u`.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "${0##*/}: needs bash 4.4 or newer, got $BASH_VERSION (on macOS: brew install bash)" >&2
    exit "$USER_MISTAKE"
fi

SCRIPT=${0##*/}
PATIENCE="" SSH_TRIES=${SSH_TRIES:-20}
DRY_RUN=""
ARGUMENTS=()

say() { printf '%s\n' "$*"; }

# die CODE MESSAGE: one line on stderr.
die() {
    printf '%s: %s\n' "$SCRIPT" "$2" >&2
    exit "$1"
}

# Prints words so that they can be pasted into a shell.
quoted() {
    local word words=()
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then words+=("$word"); else words+=("'${word//\'/\'\\\'\'}'"); fi
    done
    printf '%s' "${words[*]}"
}

# The comment at the top of a script is its help.
print_help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

read_options() {
    while (($#)); do
        case $1 in
        --help) print_help && exit 0 ;;
        --list) accelerator_table && exit 0 ;;
        --dry-run) DRY_RUN=1 ;;
        *) ARGUMENTS+=("$1") ;;
        esac
        shift
    done
}

no_arguments() {
    ((${#ARGUMENTS[@]} == 0)) || die "$USER_MISTAKE" "unknown argument '${ARGUMENTS[0]}'; see $SCRIPT --help"
}

one_of() { # one_of VARIABLE VALUE...
    local variable=$1 value
    shift
    for value; do [[ ${!variable} == "$value" ]] && return; done
    die "$USER_MISTAKE" "$variable must be one of: $*; got '${!variable}'"
}

whole_number() {
    [[ ${!1} =~ ^(0|[1-9][0-9]*)$ ]] || die "$USER_MISTAKE" "$1 must be a whole number, got '${!1}'"
}

# Names in Compute Engine have at most 63 characters, and a group appends 5 to its VMs' names.
check_name() {
    local name_rule='^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$'
    [[ $NAME ]] || die "$USER_MISTAKE" "NAME is not set; choose one for the slice, such as NAME=sdpo-v6e"
    [[ $NAME =~ $name_rule ]] || die "$USER_MISTAKE" \
        "NAME must be lower-case letters, digits and hyphens, beginning with a letter, at most 52; got '$NAME'"
}

# Reads and checks the parameters of every script.
read_settings() {
    NAME=${NAME:-} PROJECT=${PROJECT:-} ZONE=${ZONE:-} ACCELERATOR=${ACCELERATOR:-}
    POLL_SECONDS=${POLL_SECONDS:-30} TRIES=${TRIES:-5} INTERNAL_IPS=${INTERNAL_IPS:-no}
    check_name
    [[ $PROJECT ]] || die "$USER_MISTAKE" "PROJECT is not set; \`gcloud projects list\` names yours"
    [[ $PROJECT =~ ^[a-z0-9.:-]+$ ]] || die "$USER_MISTAKE" "PROJECT must be a project's id, got '$PROJECT'"
    [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "$USER_MISTAKE" \
        "ZONE must be a zone such as us-east5-a (https://cloud.google.com/tpu/docs/regions-zones), got '$ZONE'"
    describe_accelerator "$ACCELERATOR" || die "$USER_MISTAKE" \
        "ACCELERATOR must be a row of \`tpu_scripts/create --list\`, got '$ACCELERATOR'"
    API=${API:-${APIS%% *}} REGION=${ZONE%-*}
    # shellcheck disable=SC2086 # a list of words
    one_of API $APIS
    one_of INTERNAL_IPS yes no
    [[ $POLL_SECONDS =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "$USER_MISTAKE" "POLL_SECONDS must be a number, got '$POLL_SECONDS'"
    whole_number TRIES
    whole_number SSH_TRIES
    [[ $DRY_RUN ]] || command -v gcloud >/dev/null || die "$USER_MISTAKE" \
        "gcloud is not on PATH; see https://cloud.google.com/sdk/docs/install"
    # What the scripts keep on this machine: the wheel of a slice and the counts of watch.
    KEPT=${XDG_STATE_HOME:-$HOME/.local/state}/jaxdistill/$PROJECT/$ZONE/$NAME
}

# As jaxdistill checks it: a mistake that the workers would find costs a slice. gcloud reads `*`, `?`
# and `[` as patterns, so that another run's finished.json could be taken for this one's.
check_run_dir() {
    RUN_DIR=${RUN_DIR:-}
    while [[ $RUN_DIR == */ ]]; do RUN_DIR=${RUN_DIR%/}; done
    [[ $RUN_DIR ]] || die "$USER_MISTAKE" "RUN_DIR is not set; give gs://BUCKET/RUN, in a bucket of the region $REGION"
    if [[ $RUN_DIR == /* && $RUN_DIR != *[[:cntrl:]]* ]]; then return; fi
    local rule='^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/([^/]+/)*[^/]+$'
    if [[ $RUN_DIR =~ $rule && $RUN_DIR/ != */./* && $RUN_DIR/ != */../* && $RUN_DIR != *[][*?#\\[:cntrl:]]* ]]; then return; fi
    die "$USER_MISTAKE" \
        "RUN_DIR must be gs://BUCKET/RUN or a path of the workers that begins with /, got '${RUN_DIR//[[:cntrl:]]/?}'; a bucket's name is lower-case, and no address has //, /../ or one of *?[]#\\"
}

# Prints the process that watches this slice, if one does.
watcher() {
    local other
    other=$(cat "$KEPT/watch.pid" 2>/dev/null || true)
    if [[ $other ]] && ps -p "$other" -o args= 2>/dev/null | grep -q watch; then echo "$other"; fi
}

# show VARIABLE...: the parameters, as lines that can be pasted.
show() {
    local variable
    for variable in NAME PROJECT ZONE ACCELERATOR API "$@" INTERNAL_IPS TRIES POLL_SECONDS; do
        say "export $variable=$(quoted "${!variable}")"
    done
    say "# $ACCELERATOR: $TOPOLOGY, $CHIPS chips, $HOSTS host(s), $DEVICES devices of $HBM_GIB GiB"
}

# Runs a command after printing it; with --dry-run only prints it.
call() {
    if [[ $DRY_RUN ]]; then quoted "$@" && echo && return; fi
    [[ ${QUIET:-} ]] || printf '+ %s\n' "$(quoted "$@")" >&2
    "$@" </dev/null
}

# ask DRY_ANSWER COMMAND...: sets ANSWER to what the command prints and FAILURE to its stderr.
ask() {
    local dry_answer=$1 errors status=0
    shift
    ANSWER="" FAILURE=""
    if [[ $DRY_RUN ]]; then quoted "$@" && echo && ANSWER=$dry_answer && return; fi
    errors=$(mktemp)
    ANSWER=$("$@" </dev/null 2>"$errors") || status=$?
    FAILURE=$(<"$errors")
    rm -f "$errors"
    return "$status"
}

# Waits between two questions to the service.
pause() { [[ $DRY_RUN ]] || sleep "$POLL_SECONDS"; }

# explain TEXT: sets REASON and CODE from what gcloud or the service said.
explain() {
    CODE="$TRY_AGAIN"
    case $1 in
    *"active account"* | *"auth login"* | *[Rr]eauthenticat*)
        CODE="$USER_MISTAKE" REASON="gcloud is not logged in; run \`gcloud auth login\`" ;;
    *"denied on 'locations/"* | *"Invalid value for field 'zone'"* | *"Location "*" is not found"* | *"/zones/$ZONE' was not found"*)
        CODE="$USER_MISTAKE" REASON="ZONE=$ZONE does not exist or has no TPUs for PROJECT=$PROJECT" ;;
    *"invalid AcceleratorType"* | *"AcceleratorType"*"not found"* | *"achine type"*"does not exist in zone"*)
        CODE="$USER_MISTAKE" REASON="ZONE=$ZONE has no ACCELERATOR=$ACCELERATOR" ;;
    *SERVICE_DISABLED* | *"has not been used in project"*)
        CODE="$USER_MISTAKE" REASON="an API is off; run \`gcloud services enable tpu.googleapis.com compute.googleapis.com --project=$PROJECT\`" ;;
    *[Qq]uota*exceeded* | *QUOTA_EXCEEDED* | *"Quota limit"*)
        CODE="$USER_MISTAKE" REASON="the quota of PROJECT=$PROJECT does not suffice (https://cloud.google.com/tpu/docs/quota)" ;;
    *PERMISSION_DENIED* | *"roject"*"not found"* | *"ermission"*"denied"* | *"equired "*" permission"* | *"does not exist or"*)
        CODE="$USER_MISTAKE" REASON="PROJECT=$PROJECT does not exist, or your account may not use TPUs in it" ;;
    *INVALID_ARGUMENT* | *"unrecognized arguments"* | *"Invalid value"* | *"Invalid choice"*)
        CODE="$USER_MISTAKE" REASON="the service refuses the request" ;;
    *"no more capacity"* | *RESOURCE_POOL_EXHAUSTED* | *[Ss]tockout* | *"Insufficient reserved capacity"*)
        REASON="no capacity for $ACCELERATOR in $ZONE at the moment" ;;
    *PREEMPTED* | *SUSPENDED* | *"terminal state"*) REASON="the slice was preempted" ;;
    *"not present in the SSH agent"*)
        CODE="$USER_MISTAKE" REASON="your ssh-agent lacks the key; run \`ssh-add ~/.ssh/google_compute_engine\`" ;;
    *) REASON="gcloud failed" ;;
    esac
    # The service's own words, on one line.
    local words
    words=$(tr -s '[:space:]' ' ' <<<"$1")
    REASON="$REASON: ${words:0:400}"
}
