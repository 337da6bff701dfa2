#!/bin/bash
# bash run.sh OUTDIR [bits] [model] [sanitizer]: builds and runs the programs of this folder (all by default)
# on the GPU of this machine and leaves their JSON in OUTDIR. Needs nvcc and a Hopper GPU.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
what=${*:-bits model sanitizer}
cd "$(dirname "$0")"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
bash build.sh "$build" || exit 1

bits() { "$build/tensor_core_bits" "$out/tensor_core_bits.json"; }
model() { "$build/tensor_core_model" "$out/tensor_core_model.json" "$out/tensor_core_mismatches.txt"; }
sanitizer() {
  local tool status failed=0
  for tool in memcheck racecheck; do
    echo "-- compute-sanitizer --tool $tool tensor_core_bits OUT.json small"
    compute-sanitizer --tool $tool --error-exitcode 9 "$build/tensor_core_bits" "$build/small.json" small 2>&1 |
      grep -E "=====|SUMMARY" | tail -20
    status=${PIPESTATUS[0]}
    echo "exit status $status"
    [ "$status" = 0 ] || failed=1
  done
  return $failed
}

failed=0
for part in $what; do
  echo "== $part"
  start=$SECONDS
  "$part" 2>&1 | tee "$out/$part.log" || failed=1
  echo "== $part took $((SECONDS - start)) s"
done
exit $failed
