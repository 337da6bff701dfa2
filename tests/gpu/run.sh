#!/usr/bin/env bash
# run.sh [tests|sanitize|bench|all]: the GPU tests and benches of lmhead, on a machine with a driver and no Rust.
#
#   tests     what this machine can run, the tests on the GPU (a JSON of the carriers' bits), the same kernels on the
#             emulated device, and the program's own check on the GPU
#   sanitize  the small cases under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#   bench     the products at full size with both roofs, then PyTorch on the same shapes
#
# Logs and JSON go to $OUT (./out), eight files at most; LMHEAD_EMULATED_TESTS is a filter of the emulated tests. Each mode ends
# within eight minutes. Exit codes: 0 all good, 1 something failed or was ignored for want of a GPU, 2 wrong arguments.
set -uo pipefail
case "${1:-all}" in
  tests | sanitize | bench) modes=$1 ;;
  all) modes="tests sanitize bench" ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${OUT:-out}" && out=$(cd "${OUT:-out}" && pwd) || exit 1
rows=()
failed=0

# step NAME LOG SECONDS COMMAND...: runs it under a time limit, appends what it prints to the log, notes how it ended.
step() {
  local name=$1 log=$out/$2 limit=$3 start=$SECONDS status verdict said
  shift 3
  echo "== $name"
  said=$(timeout -k 10 "$limit" "$@" 2>&1)
  status=$?
  printf '== %s: %s\n%s\n' "$name" "$*" "$said" >>"$log"
  case $status in
    0) verdict=ok ;;
    127) verdict="not found: $1" ;;
    124 | 137) verdict="no end within $limit s" ;;
    *) verdict="failed ($status)" ;;
  esac
  # A test that reports `ignored` has not been run: here that is a failure.
  if [ "$status" = 0 ] && grep -qE '^(test .*ignored \(needs a GPU|ignored: )' <<<"$said"; then
    verdict="ignored: $(sed -n -e 's/^test .*ignored (needs a GPU: \(.*\))$/\1/p' -e 's/^ignored: //p' <<<"$said" | head -1)"
  fi
  [ "$verdict" = ok ] || { failed=1 && tail -15 <<<"$said"; }
  rows+=("$name|$verdict|$((SECONDS - start))|$(sed -n 's/^test result: [^ ]* \([^;]*; [^;]*; [^;]*\);.*/\1/p' <<<"$said" | tail -1)")
}

cd "$here" || exit 1
for mode in $modes; do
  if [ "$mode" = tests ]; then
    rm -f "$out"/{tests.log,carriers.json}
    step doctor tests.log 20 ./lmhead doctor
    step unit tests.log 40 ./unit cuda
    LMHEAD_GPU_RESULTS=$out/carriers.json step gpu tests.log 260 ./gpu --color never
    step emulated tests.log 110 ./emulated ${LMHEAD_EMULATED_TESTS:+"$LMHEAD_EMULATED_TESTS"}
    step program tests.log 30 ./lmhead run --backend cuda --preset tiny --rows 3,0,2 --lmhead-tp-size 3 --check
  elif [ "$mode" = bench ]; then
    rm -f "$out"/{bench.log,bench.json,peers.json}
    LMHEAD_COMMIT=$(tr '\n' ' ' <COMMIT) LMHEAD_GPU_SECONDS=200 \
      step products bench.log 270 ./gpu_matmul --table "$out/bench.json"
    step peers bench.log 190 python3 gpu_peers.py "$out/peers.json" 140 "$out/bench.json"
  else
    rm -f "$out/sanitize.log"
    # Calls that are meant to fail are checked by the tests themselves.
    for tool in memcheck racecheck initcheck synccheck; do
      LMHEAD_GPU_SMALL=1 step "$tool" sanitize.log 110 \
        compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 ./gpu --color never
    done
  fi
done

{
  echo '['
  for i in "${!rows[@]}"; do
    IFS='|' read -r name verdict seconds counts <<<"${rows[$i]}"
    printf '  {"step": "%s", "verdict": "%s", "seconds": %s, "tests": "%s"}%s\n' \
      "$name" "${verdict//[\"\\[:cntrl:]]/}" "$seconds" "$counts" "$([ "$i" = $((${#rows[@]} - 1)) ] || echo ,)"
  done
  echo ']'
} >"$out/summary.json"
echo
printf '%-10s %-8s %-40s %s\n' step seconds tests verdict
for row in "${rows[@]}"; do
  IFS='|' read -r name verdict seconds counts <<<"$row"
  printf '%-10s %-8s %-40s %s\n' "$name" "$seconds" "$counts" "$verdict"
done
exit $failed
