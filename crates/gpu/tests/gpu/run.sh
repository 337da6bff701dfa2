#!/usr/bin/env bash
# run.sh first [--only STEP[,STEP]]: evidence from a GPU within 480 seconds, on a machine with a driver and no
# Rust. run.sh hopper: the same for the kernels that only compute capability 9.0 has, for packed weights.
# run.sh nccl: two and four ranks, processes that share the GPU, over NCCL: no part of the first.
#
#   doctor     what this machine can run
#   bits       16-bit products against the bits that the emulated device computed when the bundle was made,
#              int8 against the rule, every tile on small shapes, tiles for packed weights against portable
#              ones, a captured graph against eager launches
#   heads      129280 x 7168 and 128256 x 4096 in bf16, W8A8, W8A16 and FP8, 1 to 4096 rows, and 1/8 and 1/16
#              of the first, by the kernels that a head has there: each by turns with its roofs, with PyTorch
#              and, where its weights are packed, with portable kernels; a proof that the product is right
#              beside each time
#   memcheck   every kernel once under compute-sanitizer
#   racecheck  the same
#   answers    129280 x 7168 in bf16, 1 to 256 rows: argmax, top-k, logprobs and samples over the product
#              alone, by turns with PyTorch, and with Triton, vLLM and FlashInfer where they are installed
#   ncu        four launches under Nsight Compute
#   probes     patterns of reading weights, by 16 to 132 blocks
#   rest       the other tests, by what they are worth, until the time is up
#   nccl       only where it is asked for: bits of steps, a rank that is late or killed, replays of a graph
#
# hopper is doctor and bits; memcheck and racecheck of the kernels for packed weights; heads, for longer than
# in the first; answers; ncu. On another device it says so and runs nothing.
#
# In this order, each under a limit of its own. A second call does what the first had no time for:
# `run.sh first --only rest`. Results are in $OUT (./out), eight files at most, as they come; summary.json
# names device, driver, commit and date. What is missing here (driver, PyTorch, compute-sanitizer, ncu) is
# told by its step, and the others go on. On the machine where the project is, `scripts/gpu-results OUT` makes
# of them what can be committed. LMHEAD_GPU_SECONDS gives another time than 480 seconds.
# Exit codes: 0 all good, 1 something failed or is missing, 2 wrong arguments.
set -uo pipefail
all="doctor bits heads memcheck racecheck answers ncu probes rest"
known="$all nccl"
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ "$*" != nccl ] || set -- first --only nccl
# Where there is little time: which kernels a sanitizer runs, and how long heads are measured.
checked=kernels:: heads_limit=120 hopper=
if [ "$*" = hopper ]; then
  hopper=1 checked=kernels::packed heads_limit=170
  set -- first --only doctor,bits,memcheck,racecheck,heads,answers,ncu
fi
[ "${1:-}" = first ] || usage
case $# in
  1) wanted=$all ;;
  3) [ "$2" = --only ] || usage; wanted=${3//,/ } ;;
  *) usage ;;
esac
[ -n "${wanted// /}" ] || usage
for step in $wanted; do
  [[ " $known " == *" $step "* ]] || { echo "run.sh: wanted steps of: $known; got $step" >&2; exit 2; }
done
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${OUT:-out}" && out=$(cd "${OUT:-out}" && pwd) || exit 1
cd "$here" || exit 1
# Where CUDA toolkits are that no PATH names.
PATH=$PATH:/usr/local/cuda/bin
# A little is kept for what remains when a step has been stopped.
deadline=$((SECONDS + ${LMHEAD_GPU_SECONDS:-480} - 10))
LMHEAD_COMMIT=$(tr '\n' ' ' <COMMIT | sed 's/ $//')
LMHEAD_DATE=$(date -u +%Y-%m-%dT%H:%M:%SZ)
export LMHEAD_COMMIT LMHEAD_DATE
export LMHEAD_GPU_PEERS=$here/gpu_peers.py LMHEAD_GPU_RECORDED=$here/recorded.safetensors
method="run.sh ${hopper:+hopper: }first --only ${wanted// /,}: each step a program of its own under a limit"
about= none="no step has asked" rows=() failed=0
# The largest head, unless nothing is meant to be measured.
preset=${LMHEAD_GPU_SMALL:+tiny} preset=${preset:-deepseek-v3}

# summary: the verdicts so far, as JSON.
summary() {
  local i name verdict seconds counts
  {
    if [ -n "$about" ]; then
      printf '%s, ' "${about%\}}"
    else
      printf '{"device": null, "none": "%s", "commit": "%s", "date": "%s", ' \
        "${none//[\"\\[:cntrl:]]/}" "$LMHEAD_COMMIT" "$LMHEAD_DATE"
    fi
    printf '"method": "%s", "steps": [\n' "$method"
    for i in "${!rows[@]}"; do
      IFS='|' read -r name verdict seconds counts <<<"${rows[$i]}"
      printf '  {"step": "%s", "verdict": "%s", "seconds": %s, "tests": "%s"}%s\n' \
        "$name" "${verdict//[\"\\[:cntrl:]]/}" "$seconds" "$counts" \
        "$([ "$i" = $((${#rows[@]} - 1)) ] || echo ,)"
    done
    echo ']}'
  } >"$out/summary.json"
}

# shorten LOG FROM: of what was written to the log from that byte on, leaves the first and the last half
# megabyte.
shorten() {
  local log=$1 from=$2 keep=524288 size short
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

# Sessions of their own, so that what a program has started is stopped with it.
session=$(command -v setsid || true)
# limited SECONDS LOG COMMAND...: its exit code, or 124. Nobody waits for a program that even a kill does not
# end.
limited() {
  local end=$((SECONDS + $1)) log=$2 pid
  shift 2
  ${session:+"$session"} "$@" >>"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$end" ]; then
      kill -TERM -- "${session:+-}$pid" 2>/dev/null
      sleep 2
      kill -KILL -- "${session:+-}$pid" 2>/dev/null
      return 124
    fi
    sleep 0.1
  done
  wait "$pid"
}

# evidence NAME: lines that a good end of this step's tool has, and how many of them. These tools end well,
# too, where they have looked at nothing.
evidence() {
  case $1 in
    ncu) echo '4 ^==PROF== Profiling "' ;;
    racecheck) echo '1 RACECHECK SUMMARY' ;;
    memcheck | initcheck | synccheck) echo '1 ERROR SUMMARY' ;;
    *) echo '0 .' ;;
  esac
}

# step NAME LOG SECONDS COMMAND...: runs it under a time limit, appends what it prints to the log, notes how
# it ended.
step() {
  local name=$1 log=$out/$2 limit=$3 start=$SECONDS left=$((deadline - SECONDS))
  local least=5 status=0 verdict said from refusal word wanted pattern seen words=()
  shift 3
  echo "== $name"
  [ "$limit" -le "$left" ] || limit=$left
  # A measurement that is told its seconds needs some more, to start and to end what it has begun.
  case "$1 ${2:-}" in
    './gpu_matmul heads' | './gpu_matmul answers' | './gpu_matmul probes')
      least=20
      for word; do
        ! [[ $word =~ ^[0-9]+$ && $word -gt $((limit - 15)) ]] || word=$((limit - 15))
        words+=("$word")
      done
      set -- "${words[@]}"
      ;;
  esac
  printf '== %s: %s\n' "$name" "$*" >>"$log"
  from=$(stat -c %s "$log")
  if [ "$limit" -lt "$least" ]; then
    echo "not run: no time left" >>"$log"
    verdict="no time left"
  elif ! command -v "$1" >/dev/null; then
    echo "not run: there is no $1 on this machine" >>"$log"
    verdict="not here: $1"
  else
    limited "$limit" "$log" "$@" || status=$?
    case $status in
      0) verdict=ok ;;
      124) verdict="no end within $limit s" ;;
      *) verdict="failed ($status)" ;;
    esac
  fi
  shorten "$log" "$from"
  said=$(tail -c "+$((from + 1))" "$log" | tr -d '\0')
  # Some machines have these tools and refuse them the device, and ncu ends well none the less.
  refusal='Device not supported.*|Failed to initialize the profiler.*|ERR_NVGPUCTRPERM.*'
  refusal=$(grep -m1 -oE "$refusal" <<<"$said" | head -1)
  [ -z "$refusal" ] || verdict="refused: $refusal"
  # A test that reports `ignored` has not been run: here that is a failure.
  if [ "$verdict" = ok ] && grep -qE '^(test .*ignored \(needs a GPU|ignored: )' <<<"$said"; then
    word='s/^test .*ignored (needs a GPU: \(.*\))$/\1/p'
    verdict="ignored: $(sed -n -e "$word" -e 's/^ignored: //p' <<<"$said" | head -1)"
  fi
  # Times without those of the peers cannot be published.
  if [ "$verdict" = ok ] && grep -q '^no peers: ' <<<"$said"; then
    verdict=$(grep -m1 '^no peers: ' <<<"$said")
  fi
  read -r wanted pattern <<<"$(evidence "$name")"
  seen=$(grep -cE "$pattern" <<<"$said")
  if [ "$verdict" = ok ] && [ "$seen" -lt "$wanted" ]; then
    verdict="no evidence: $seen of $wanted lines with ${pattern#^}"
  fi
  [ "$verdict" = ok ] || { failed=1 && tail -15 <<<"$said"; }
  word='s/^test result: [^ ]* \([^;]*; [^;]*; [^;]*\);.*/\1/p'
  rows+=("$name|${verdict//|/ }|$((SECONDS - start))|$(sed -n "$word" <<<"$said" | tail -1)")
  summary
}

tests() { # STEP LOG SECONDS FILTER: tests on the GPU by name
  step "$1" "$2" "$3" ./gpu --color never "$4"
}
sanitize() { # TOOL SECONDS
  # Calls that are meant to fail are checked by the tests themselves.
  LMHEAD_GPU_SMALL=1 step "$1" sanitize.log "$2" \
    compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 9 \
    ./gpu --color never "$checked" "${skipped[@]}"
}

# PyTorch's libraries are gigabytes, which come from the disk while other steps run.
[[ " $wanted " != *" heads "* ]] || (timeout 60 python3 -c 'import torch' >/dev/null 2>&1 </dev/null &)
# Also of a second call, which may leave the doctor out.
said=$(mktemp) && limited 20 "$said" ./gpu_matmul about
case $(tail -1 "$said") in
  \{*\}) about=$(tail -1 "$said") ;;
  *) none=$(tail -1 "$said") ;;
esac
rm -f "$said"
capability=$(sed -n 's/.*"compute_capability":"\([^"]*\)".*/\1/p' <<<"$about")
# Kernels that another device does not have are no test that it has failed to run.
skipped=()
if [ "$capability" != 9.0 ]; then
  [ -z "$about" ] || for name in packed:: microkernels::wgmma microkernels::gather microkernels::bits_of; do
    skipped+=(--skip "kernels::$name")
  done
  if [ -n "$hopper" ]; then
    got=${about:+$(sed -n 's/.*"name":"\([^"]*\)".*/\1/p' <<<"$about") with $capability}
    got=${got:-${none//[\"\[:cntrl:]]/}}
    echo "run.sh hopper: wanted a device of compute capability 9.0, got $got;" \
      "run.sh first measures what runs on others" >&2
    rows+=("hopper|not here: a device of compute capability 9.0, got ${got//|/ }|0|")
    summary
    exit 1
  fi
fi
for one in $wanted; do
  case $one in
    doctor) step doctor run.log 10 ./lmhead doctor ;;
    bits) tests bits run.log 60 bits:: ;;
    heads)
      # A process for each kind; the rest of the limit is for what each of them has begun when its time is up.
      left=$((deadline - SECONDS))
      left=$((left > heads_limit ? heads_limit - 15 : left > 20 ? left - 15 : 5))
      step heads run.log "$heads_limit" ./gpu_matmul heads "$out/heads.json" "$left"
      ;;
    memcheck) sanitize memcheck 60 ;;
    racecheck) sanitize racecheck 60 ;;
    answers) step answers run.log 75 ./gpu_matmul answers "$out/answers.json" 60 ;;
    ncu)
      step ncu ncu.log 40 ncu --clock-control none --kernel-name regex:matmul --launch-count 4 \
        --section LaunchStats --section Occupancy --section SpeedOfLight --section MemoryWorkloadAnalysis \
        --section ComputeWorkloadAnalysis --section WarpStateStats ./gpu_matmul profile
      ;;
    probes) step probes run.log 30 ./gpu_matmul probes "$out/probes.json" 15 ;;
    # NCCL is the system's, PyTorch's, or that of LMHEAD_NCCL.
    nccl) tests nccl run.log 450 nccl:: ;;
    rest)
      tests plans run.log 60 products::every_plan
      tests independent run.log 30 products::bits_do_not_depend
      tests many_logits run.log 30 products::more_than
      tests vocabularies run.log 60 products::every_vocabulary
      tests many_tiles run.log 20 products::more_tiles
      tests memory run.log 20 memory::
      tests windows run.log 30 windows::
      step program run.log 30 \
        ./lmhead run --backend cuda --preset tiny --rows 3,0,2 --lmhead-tp-size 3 --check
      sanitize initcheck 60
      sanitize synccheck 60
      # What keeps the processor busy, and the GPU hardly: for the time that is left.
      LMHEAD_GPU_RESULTS=$out/microkernels.json tests microkernels run.log 60 kernels::microkernels
      step whole_program run.log 60 \
        ./lmhead run --backend cuda --preset "$preset" --rows 7,0,12,9 --lmhead-tp-size 4 --check
      tests cpu_int8 run.log 60 products::int8_has_the_cpus
      ;;
  esac
done

echo
printf '%-12s %-8s %-40s %s\n' step seconds tests verdict
for row in "${rows[@]}"; do
  IFS='|' read -r name verdict seconds counts <<<"$row"
  printf '%-12s %-8s %-40s %s\n' "$name" "$seconds" "$counts" "$verdict"
done
exit $failed
