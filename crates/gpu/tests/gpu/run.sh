#!/usr/bin/env bash
# run.sh [tests|sanitize|bench|all]: the GPU tests and benches of lmhead, on a machine with a driver and no Rust.
#
#   tests     what this machine can run, the tests on the GPU (a JSON of the carriers' bits), the program's own checks on the
#             GPU, small and at full size, and the same kernels on the emulated device
#   sanitize  the small cases under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#   bench     the products at full size, each beside its roofs, then PyTorch on the same shapes
#
# Logs and JSON go to $OUT (./out), eight files at most, as they come: what there is remains where a step, or all of this, is stopped.
# Groups of tests are programs of their own: a GPU that one of them loses is there for the next. Each mode ends within eight minutes: a step
# that finds no time left is not run. LMHEAD_EMULATED_TESTS is a filter of the emulated tests. Exit codes: 0 all good, 1 something
# failed or was ignored for want of a GPU, 2 wrong arguments.
set -uo pipefail
case "${1:-all}" in
  tests | sanitize | bench) modes=$1 ;;
  all) modes="tests sanitize bench" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${OUT:-out}" && out=$(cd "${OUT:-out}" && pwd) || exit 1
# Where CUDA toolkits are that no PATH names.
PATH=$PATH:/usr/local/cuda/bin
mode_seconds=460
rows=()
failed=0

# summary: the verdicts so far, as JSON.
summary() {
  local i name verdict seconds counts
  {
    echo '['
    for i in "${!rows[@]}"; do
      IFS='|' read -r name verdict seconds counts <<<"${rows[$i]}"
      printf '  {"step": "%s", "verdict": "%s", "seconds": %s, "tests": "%s"}%s\n' \
        "$name" "${verdict//[\"\\[:cntrl:]]/}" "$seconds" "$counts" "$([ "$i" = $((${#rows[@]} - 1)) ] || echo ,)"
    done
    echo ']'
  } >"$out/summary.json"
}

# shorten LOG FROM: of what was written to the log from that byte on, leaves the first and the last two megabytes.
shorten() {
  local log=$1 from=$2 keep=2097152 size short
  size=$(stat -c %s "$log")
  [ $((size - from)) -gt $((2 * keep + 100)) ] || return 0
  short=$(mktemp) || return 0
  {
    head -c $((from + keep)) "$log"
    printf '\n[%s bytes left out]\n' $((size - from - 2 * keep))
    tail -c "$keep" "$log"
  } >"$short"
  cat "$short" >"$log"
  rm -f "$short"
}

# step NAME LOG SECONDS COMMAND...: runs it under a time limit, appends what it prints to the log, notes how it ended.
step() {
  local name=$1 log=$out/$2 limit=$3 start=$SECONDS left=$((mode_began + mode_seconds - SECONDS)) status=0 verdict said from
  shift 3
  echo "== $name"
  [ "$limit" -le "$left" ] || limit=$left
  printf '== %s: %s\n' "$name" "$*" >>"$log"
  from=$(stat -c %s "$log")
  if [ "$limit" -lt 5 ]; then
    echo "not run: no time left" >>"$log"
    verdict="no time left"
  else
    timeout -k 10 "$limit" "$@" >>"$log" 2>&1 </dev/null || status=$?
    case $status in
      0) verdict=ok ;;
      127) verdict="not found: $1" ;;
      124 | 137) verdict="no end within $limit s" ;;
      *) verdict="failed ($status)" ;;
    esac
  fi
  shorten "$log" "$from"
  said=$(tail -c "+$((from + 1))" "$log" | tr -d '\0')
  # A test that reports `ignored` has not been run: here that is a failure.
  if [ "$verdict" = ok ] && grep -qE '^(test .*ignored \(needs a GPU|ignored: )' <<<"$said"; then
    verdict="ignored: $(sed -n -e 's/^test .*ignored (needs a GPU: \(.*\))$/\1/p' -e 's/^ignored: //p' <<<"$said" | head -1)"
  fi
  [ "$verdict" = ok ] || { failed=1 && tail -15 <<<"$said"; }
  rows+=("$name|$verdict|$((SECONDS - start))|$(sed -n 's/^test result: [^ ]* \([^;]*; [^;]*; [^;]*\);.*/\1/p' <<<"$said" | tail -1)")
  summary
}

cd "$here" || exit 1
for mode in $modes; do
  mode_began=$SECONDS
  if [ "$mode" = tests ]; then
    rm -f "$out"/{tests.log,carriers.json}
    step doctor tests.log 20 ./lmhead doctor
    step unit tests.log 40 ./unit cuda
    step memory tests.log 30 ./gpu --color never memory::
    LMHEAD_GPU_RESULTS=$out/carriers.json step carriers tests.log 90 ./gpu --color never carriers::
    step products tests.log 230 ./gpu --color never products::
    LMHEAD_GPU_SECONDS=60 step table tests.log 130 ./gpu --color never table::
    step program tests.log 30 ./lmhead run --backend cuda --preset tiny --rows 3,0,2 --lmhead-tp-size 3 --check
    step head tests.log 60 \
      ./lmhead run --backend cuda --preset deepseek-v3 --rows 7,0,12,9 --lmhead-tp-size 4 --check
    step emulated tests.log 110 ./emulated ${LMHEAD_EMULATED_TESTS:+"$LMHEAD_EMULATED_TESTS"}
  elif [ "$mode" = bench ]; then
    rm -f "$out"/{bench.log,bench.json,peers.json}
    LMHEAD_COMMIT=$(tr '\n' ' ' <COMMIT) LMHEAD_GPU_SECONDS=210 \
      step products bench.log 270 ./gpu_matmul --table "$out/bench.json"
    step peers bench.log 180 python3 gpu_peers.py "$out/peers.json" 140 "$out/bench.json"
  else
    rm -f "$out/sanitize.log"
    # Calls that are meant to fail are checked by the tests themselves.
    for tool in memcheck racecheck initcheck synccheck; do
      LMHEAD_GPU_SMALL=1 step "$tool" sanitize.log 110 \
        compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 ./gpu --color never
    done
  fi
done

echo
printf '%-10s %-8s %-40s %s\n' step seconds tests verdict
for row in "${rows[@]}"; do
  IFS='|' read -r name verdict seconds counts <<<"$row"
  printf '%-10s %-8s %-40s %s\n' "$name" "$seconds" "$counts" "$verdict"
done
exit $failed
