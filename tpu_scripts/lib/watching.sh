# shellcheck shell=bash
# What watch does in each state, and what it remembers across its own interruptions.
# shellcheck disable=SC2034,SC2153,SC2154 # watch reads and sets what the functions share

read_limits() {
    MAX_ATTEMPTS=${MAX_ATTEMPTS:-20} MAX_FAILURES=${MAX_FAILURES:-3}
    AGAIN=${AGAIN:-no} WHEN_DONE=${WHEN_DONE:-keep}
    whole_number MAX_ATTEMPTS
    whole_number MAX_FAILURES
    one_of AGAIN yes no
    one_of WHEN_DONE keep delete
    # The service may be out of reach for an hour (a laptop asleep, a network down).
    WATCH_TRIES=${WATCH_TRIES:-60}
    whole_number WATCH_TRIES
    PATIENCE=$WATCH_TRIES
    attempts=0 failures=0 seen="" first_look=yes no_slice=0 child=""
}

say_now() { say "$(date '+%F %T') $*"; }

# One watch per slice: two would delete each other's.
take_watch() {
    mkdir -p "$KEPT"
    local other
    if ! (set -o noclobber && echo $$ >"$KEPT/watch.pid") 2>/dev/null; then
        other=$(watcher)
        [[ ! $other ]] || die "$USER_MISTAKE" "process $other watches $NAME already"
        echo $$ >"$KEPT/watch.pid" # its process has ended
    fi
    trap 'rm -f "$KEPT/watch.pid"' EXIT
    trap 'leave_watch' INT TERM HUP
    # Counts of a watch that was interrupted; one that gave up or finished has removed them.
    if [[ -e $KEPT/watch ]]; then
        read -r attempts failures seen <"$KEPT/watch"
        say_now "continuing: $attempts of $MAX_ATTEMPTS attempts used, $failures failures in a row"
    fi
}

leave_watch() {
    [[ ! $child ]] || kill "$child" 2>/dev/null || true
    say "watch stopped, the run continues; the same command takes it up again"
    exit 130
}

remember() { echo "$attempts $failures $seen" >"$KEPT/watch.new" && mv "$KEPT/watch.new" "$KEPT/watch"; }

give_up() { # CODE REASON
    rm -f "$KEPT/watch"
    say_now "giving up: $2"
    say "The slice $NAME costs money while it exists: tpu_scripts/delete."
    exit "$1"
}

count_attempt() { # WHY
    attempts=$((attempts + 1))
    ((attempts <= MAX_ATTEMPTS)) || give_up 1 "$1, and all $MAX_ATTEMPTS attempts are used (MAX_ATTEMPTS)"
    remember
}

count_failure() { # WHY
    failures=$((failures + 1))
    remember
    say_now "$1 (failure $failures of $MAX_FAILURES in a row)"
    ((failures < MAX_FAILURES)) || give_up 1 "$1, $failures times in a row (MAX_FAILURES)"
}

# ask_finished: 1 when the run is finished. A bucket that cannot be read is not "not finished":
# a slice would be made, and paid, for nothing.
ask_finished() {
    local try
    for ((try = 1; ; try++)); do
        if is_finished; then break; fi
        ((try < PATIENCE)) || give_up 1 "$RUN_DIR cannot be read: $(head -1 <<<"$FAILURE")"
        pause
    done
    [[ $FINISHED == no ]]
}

# step SCRIPT [ARGUMENT...]: a sibling, with the same parameters. A mistake to correct ends the watch.
step() {
    local status=0
    # In the background: bash runs no trap while a command in the foreground (hours of waiting in
    # create) has not ended.
    "$scripts/$1" "${@:2}" &
    child=$!
    wait "$child" || status=$?
    child=""
    ((status != USER_MISTAKE)) || give_up "$USER_MISTAKE" "tpu_scripts/$1 says what to correct, above"
    return "$status"
}

new_slice() {
    count_attempt "the slice is $STATE${DETAIL:+ ($DETAIL)}"
    say_now "the slice is $STATE${DETAIL:+ ($DETAIL)}; asking for one (attempt $attempts of $MAX_ATTEMPTS)"
    if step create; then no_slice=0 && return; fi
    # Twice the time after each refusal, up to 32 times: an empty zone is not filled in a minute.
    no_slice=$((no_slice < 5 ? no_slice + 1 : 5))
    say_now "no slice yet"
    for ((pauses = 1; pauses < 2 ** no_slice; pauses++)); do pause; done
}

# Every slice of a run gets the wheel that the first one had.
set_up() {
    local kept=("$KEPT"/wheel/jaxdistill-*.whl) status=0
    if [[ ! ${WHEEL:-} && -e ${kept[0]} && $(cat "$KEPT/wheel/run_dir" 2>/dev/null) == "$RUN_DIR" ]]; then
        say_now "setting up with the wheel that the run began with: ${kept[0]}"
        export WHEEL=${kept[0]}
    fi
    step setup || status=$?
    if ((status == 0)) && [[ -d $KEPT/wheel ]]; then echo "$RUN_DIR" >"$KEPT/wheel/run_dir"; fi
    ((status == 0 || status == TRY_AGAIN)) || count_failure "setup failed"
}

start_run() {
    local status=0
    step run "${ARGUMENTS[@]}" || status=$?
    ((status == 0 || status == TRY_AGAIN)) || count_failure "the run could not be started"
}

look_at_run() {
    case $RUN_STATE in
    none) start_run ;;
    running)
        [[ $seen == "$ATTEMPT_SEEN" ]] || say_now "attempt $ATTEMPT_SEEN is running"
        seen=$ATTEMPT_SEEN PARTIAL_SINCE="" first_look=no
        remember
        ;;
    partial)
        if [[ $STUCK ]] && stop_stragglers; then
            # What ended with a code of its own is judged when all have ended.
            ask_workers || return 0
            if [[ $RUN_STATE == ended ]]; then judge_end && return; fi
            count_attempt "the run did not reach all hosts"
            start_run
        fi
        ;;
    ended) judge_end ;;
    esac
    first_look=no
}

# The same command, by the copy that run keeps; without a copy it is assumed to be the same.
is_same_command() {
    [[ ! -e $KEPT/job.$ATTEMPT_SEEN || $(job_text) == "$(<"$KEPT/job.$ATTEMPT_SEEN")" ]]
}

judge_end() {
    case $RUN_CODE in
    2 | 3 | 130)
        if [[ $first_look == yes ]] && { [[ $AGAIN == yes ]] || ! is_same_command; }; then
            start_run
            return
        fi
        report_workers
        on_all "$FOLDER/worker/tail 20" || true
        give_up "$RUN_CODE" "attempt $ATTEMPT_SEEN ended with exit code $RUN_CODE, which resuming would repeat; change the command, or set AGAIN=yes"
        ;;
    0)
        # finished.json is written before the workers end.
        if ! ask_finished; then return; fi
        failures=0
        count_attempt "the run has stopped before its end, with exit code 0"
        say_now "the run was stopped and has saved; resuming (attempt $attempts of $MAX_ATTEMPTS)"
        ;;
    *)
        # A host that is being taken away looks like a fault for a moment.
        look_at_slice
        [[ $STATE == ready ]] || return 0
        report_workers
        on_all "$FOLDER/worker/tail 20" || true
        count_attempt "attempt $ATTEMPT_SEEN ended with exit code $RUN_CODE"
        count_failure "attempt $ATTEMPT_SEEN ended with exit code $RUN_CODE"
        ;;
    esac
    start_run
}

finish() {
    rm -f "$KEPT/watch"
    say_now "the run is finished: $RUN_DIR"
    if [[ $WHEN_DONE == delete ]]; then
        rm -f "$KEPT/watch.pid"
        CONFIRM=$NAME "$scripts/delete"
    else
        say "The slice $NAME costs money while it exists: tpu_scripts/fetch, then tpu_scripts/delete."
    fi
}
