#!/usr/bin/env bash
# Decode a long tail of lengths in a process of its own, and wait for it at most 9.5 minutes.
#
#   bash benchmarks/long_tail.sh 64 --pages 3500                  # a name, then flags of bench decode
#   bash benchmarks/long_tail.sh 64 --pages 3500                  # the same again waits for it
#
# Where a command may take ten minutes and a machine goes back soon after its last one, call it
# twice without a pause. Progress is printed, and the result at the end; both also go to $OUT. To run
# it again remove the folder ${TMPDIR:-/tmp}/long_tail_NAME.
set -euo pipefail
NAME=$1
shift
HERE=${TMPDIR:-/tmp}/long_tail_$NAME
OUT=${OUT:-.}
WAIT_S=${WAIT_S:-560} # the longest that one call waits
PYTHON=${PYTHON:-python}
mkdir -p "$HERE"
if [ ! -e "$HERE/pid" ]; then
  export PYTHONPATH=. PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_MEM_FRACTION=0.93
  # A session of its own: it goes on when this command ends.
  setsid "$PYTHON" -m jaxdistill bench decode --rows 512 --rollouts 8 --slots "${NAME%%_*}" --new 20000 \
    --mean 6000 --busy --repeats 1 --in-steps 512 --out "$HERE/result.json" "$@" \
    >"$HERE/stdout" 2>"$HERE/stderr" </dev/null &
  echo $! >"$HERE/pid"
fi
pid=$(cat "$HERE/pid")
for ((i = 0; i < WAIT_S; i++)); do
  kill -0 "$pid" 2>/dev/null || break
  sleep 1
done
cp "$HERE/stderr" "$OUT/tail_$NAME.progress.txt"
tail -3 "$HERE/stderr"
if kill -0 "$pid" 2>/dev/null; then
  echo "still running: call this again at once"
elif [ -e "$HERE/result.json" ]; then
  cp "$HERE/result.json" "$OUT/tail_$NAME.json"
  "$PYTHON" - "$HERE/result.json" <<'P'
import json, sys

found = json.load(open(sys.argv[1]))
laps = found["programs"]
# The drain begins with the first program in which a hundredth of the slots is empty.
slots = found["work"]["slots"]
full = [lap["tokens"] / max(lap["steps"], 1) >= 0.99 * slots for lap in laps]
busy_rate = found["busy"]["tokens_per_second"]
first = full.index(False) if False in full else len(laps)
print({name: found[name] for name in ("tokens", "seconds", "tokens_per_second", "share_of_busy")})
print("slots", found["slots"], "busy", found["busy"], "memory", found["memory"])
for name, part in (("while rows wait", laps[:first]), ("drain", laps[first:])):
    seconds, tokens = (sum(lap[key] for lap in part) for key in ("seconds", "tokens"))
    lost = (seconds - tokens / busy_rate) / found["seconds"]
    print(f"{name}: {seconds:.1f} s, {tokens:,.0f} tokens, {100 * lost:.1f} % of all seconds lost")
P
else
  rm "$HERE/pid" # the corrected command starts anew
  echo "failed:"
  tail -20 "$HERE/stderr"
  exit 1
fi
