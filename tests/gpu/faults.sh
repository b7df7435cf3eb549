#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A daemon on several GPUs under load, and a rank that fails, hangs or dies: what docs/health.md promises, a line a case.
# For each fault: requests that run end with UNAVAILABLE, health says no within 10 s of the last step; then the daemon
# serves again without having read its weights anew, or ends with the status that it should.
#
#   R1D=build/release/r1d tests/gpu/faults.sh [CASE...]     collective-error collective-hang kill layer-hang; default: all
#
# Needs two GPUs (DEVICE=cpu: none), curl, a build with fault points. MODEL: models/r1-nano. STEPS: how many steps a rank takes
# before its fault. FLAGS: more of `r1d serve`.
set -u
here=$(cd "$(dirname "$0")" && pwd)
R1D=${R1D:-$here/../../build/release/r1d}
MODEL=${MODEL:-$here/../../models/r1-nano}
DEVICE=${DEVICE:-cuda}
WORLD_SIZE=${WORLD_SIZE:-2}
STEPS=${STEPS:-2000}
read -ra flags <<<"${FLAGS:-}"
layers=$(grep -o '"num_hidden_layers": *[0-9]*' "$MODEL/config.json" | grep -o '[0-9]*$')
folder=$(mktemp -d)
daemon='' load=''
trap 'kill -9 $daemon $load 2>/dev/null; rm -rf "$folder"' EXIT
bad=0

now_ms() { echo $(($(date +%s%N) / 1000000)); }
port() { grep -o "\"$1\": *[0-9]*" "$folder/ports" | grep -o '[0-9]*$'; }
get() { curl -s -m 2 "http://127.0.0.1:$(port management)/$1"; }
ready() { [ "$(curl -s -m 2 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$(port management)/readyz")" = 200 ]; }
metric() { get metrics | awk -v name="$1" 'index($1, name) == 1 { sum += $2 } END { printf "%.6f", sum }'; }

# until_true LIMIT_MS COMMAND...
until_true() {
  local end=$(($(now_ms) + $1))
  shift
  until "$@"; do
    [ "$(now_ms)" -lt $end ] || return 1
    sleep 0.05
  done
}

start() { # FAULT
  rm -f "$folder/ports"
  "$R1D" serve --model "$MODEL" --device "$DEVICE" --world-size "$WORLD_SIZE" --grpc-address 127.0.0.1:0 \
    --management-address 127.0.0.1:0 --port-file "$folder/ports" --fault "$1" "${flags[@]}" >"$folder/log" 2>&1 &
  daemon=$!
  until_true 60000 test -s "$folder/ports" && until_true 60000 ready && return
  echo "the daemon does not come up:"
  tail -5 "$folder/log"
  return 1
}

begin_load() { # NAME DURATION
  "$R1D" bench serve --address "127.0.0.1:$(port grpc)" --concurrency 8 --input-len 16 --output-len 128 --ignore-eos \
    --warmup 0 --duration "$2" --timeout 60s --json "$folder/$1.json" >"$folder/$1.txt" 2>&1 &
  load=$!
}
end_load() { # what runs may end
  kill -INT "$load" 2>/dev/null
  wait "$load"
  load=''
}
count_of() { # KEY FILE: a number of the result
  grep -o "\"$1\": *[0-9]*" "$folder/$2.json" 2>/dev/null | head -1 | grep -o '[0-9]*$' || echo 0
}

# Sets flip_ms: from the last step that was seen to end until /readyz says no, or the port is closed.
watch_flip() { # LIMIT_MS
  local end=$(($(now_ms) + $1)) tokens='' seen last
  last=$(now_ms)
  while [ "$(now_ms)" -lt $end ]; do
    if ! ready; then
      flip_ms=$(($(now_ms) - last))
      return
    fi
    seen=$(metric r1d_tokens_total)
    [ "$seen" = "$tokens" ] || last=$(now_ms)
    tokens=$seen
    sleep 0.05
  done
  flip_ms=-1
}

verdict() { # CASE FAULT OK TEXT
  local word=ok
  [ "$3" = 1 ] || { word=FAILED; bad=1; tail -3 "$folder/log"; }
  printf '%-17s %-45s %s: %s\n' "$1" "$2" "$4" "$word"
}

# shellcheck disable=SC2317  # called by until_true
recovered() { [ "$(recoveries_by "$1")" = 1 ] && ready; }
# shellcheck disable=SC2317
recoveries_by() { # CAUSE
  local count
  count=$(metric "r1d_engine_recoveries_total{cause=\"$1\"}")
  echo "${count%.*}"
}

recovers() { # CASE FAULT CAUSE
  local before after ok=1 flip='' unavailable others served
  start "$2" || { bad=1; return; }
  before=$(metric r1d_load_seconds)
  begin_load first 60s
  if [ "$3" = stall ]; then
    watch_flip 40000
    flip="not ready $flip_ms ms after the last step, "
    [ "$flip_ms" -ge 0 ] && [ "$flip_ms" -le 10000 ] || ok=0
  fi
  until_true 30000 recovered "$3" || ok=0
  end_load
  begin_load second 1s
  wait "$load"
  load=''
  unavailable=$(count_of UNAVAILABLE first)
  others=$(($(count_of failed first) - unavailable + $(count_of failed second)))
  served=$(count_of ok second)
  after=$(metric r1d_load_seconds)
  [ "$unavailable" -gt 0 ] && [ "$others" = 0 ] && [ "$served" -gt 0 ] && [ "$before" = "$after" ] || ok=0
  kill -TERM "$daemon"
  wait "$daemon" || ok=0
  daemon=''
  verdict "$1" "$2" $ok "$flip$unavailable requests UNAVAILABLE, $others otherwise lost, recovered, weights read once, \
$served requests served afterwards"
}

ends() { # CASE FAULT STATUS LIMIT_MS
  local ok=1 begun status unavailable others
  start "$2" || { bad=1; return; }
  begin_load first 60s
  watch_flip 40000
  begun=$(($(now_ms) - flip_ms))
  [ "$flip_ms" -ge 0 ] && [ "$flip_ms" -le 10000 ] || ok=0
  wait "$daemon"
  status=$?
  local took=$(($(now_ms) - begun))
  daemon=''
  end_load
  unavailable=$(count_of UNAVAILABLE first)
  others=$(($(count_of failed first) - unavailable))
  [ "$status" = "$3" ] && [ $took -le "$4" ] && [ "$unavailable" -gt 0 ] && [ "$others" = 0 ] || ok=0
  verdict "$1" "$2" $ok "not ready $flip_ms ms after the last step, $unavailable requests UNAVAILABLE, $others otherwise lost, \
status $status after $took ms"
}

collectives=$(((2 * layers + 2) * STEPS))
for name in "${@:-all}"; do
  case $name in collective-error | all) recovers collective-error "ops.collective=error@rank1@$collectives+1" communicator ;; esac
  case $name in collective-hang | all) recovers collective-hang "ops.collective=hang@rank1@$collectives+1" stall ;; esac
  case $name in kill | all) ends kill "model.layer=kill@rank1@$((layers * STEPS))+1" 137 10000 2>/dev/null ;; esac
  case $name in layer-hang | all) ends layer-hang "model.layer=hang@rank1@$((layers * STEPS))+1" 1 32000 ;; esac
done
exit $bad
