#!/usr/bin/env bash
# All measurements that need a machine with one NVIDIA GPU, in numbered parts, the most
# valuable first: `OUT=folder tools/gpu_session.sh` runs 1 and 2 on an H100 or H200 until
# LIMIT seconds are over, and `OUT=folder tools/gpu_session.sh 3 4` these two, alone or
# again. Parts 1 and 2 have so400m, the model that loses most at one image, first.
#
#   part  what                                                            seconds, guessed
#   1     a call's part of the host, batches 1 to 256                                  150
#   2     one to eight images beside timm's, in its own CUDA graphs and without         300
#   3     DeiT-S at half the MACs, ImagePiece with its stem                             70
#   4     DeiT-Ti at half the MACs                                                      80
#   5     ImagePiece with its stem in float32, with and without TF32                    30
#   6     SigLIP So400m/14 at 224, batches 256, 8 and 1, and ToMe in three blocks        80
#   7     ViT-L/16, batches 256, 8 and 1, exact and fast reductions                     70
#   8     DINOv3-L/16 at 512 and So400m/14 at 384                                      130
#   9     ViT-B/16 and CLIP-L/14 at 336                                                 90
#   10    all settings of docs/comparison.md, which are in README's columns             90
#   11    doctor, and the tests that need a GPU                                        120
#   12    the dense DeiT-S and ViT-L beside timm's                                     200
#
# Parts 3 to 7 and 9 took as long on an H200 with 16 cores, of which eight programs
# compile at a time: 2 to 15 s each. torch.compile takes all cores, in which time they
# took 30 to 115 s, so timm's models have a part of their own. Others are guessed. A GPU
# machine needs jax[cuda13], flax, tyro, torch and timm, and for part 11 pytest; no network,
# no configs and no data. A call has a time limit of its own, and one that fails stops no
# other; what it measured is kept. $OUT gets speeds.jsonl, log.txt and tables.md. PYTHON
# names the interpreter. FLAGS are added to all calls of gpu_speed, such as FLAGS=--smoke
# to try the script.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?name a folder: OUT=folder $0 1 2}"
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-530} # seconds of all parts together
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs memory as well
# A part that runs again on the same machine reads its programs.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-${TMPDIR:-/tmp}/programs}
mkdir -p "$OUT"

part() { # seconds at most, command: runs it within the remaining time
  local most=$1 left=$((LIMIT - SECONDS)) began=$SECONDS status
  shift
  if ((left < 15)); then
    echo "== part $number: no time left" | tee -a "$OUT/log.txt"
    return
  fi
  echo "== part $number: $*" >> "$OUT/log.txt"
  timeout --kill-after=10 $((left < most ? left : most)) "$@" >> "$OUT/log.txt" 2>&1
  status=$?
  echo "== part $number: exit $status after $((SECONDS - began)) s" |
    tee -a "$OUT/log.txt"
}

speed() { # seconds at most, flags of tools.gpu_speed
  local most=$1
  shift
  # shellcheck disable=SC2086 # words
  part "$most" "$PYTHON" -m tools.gpu_speed --times "$OUT/speeds.jsonl" --warmup 5 \
    --seconds 0.25 "$@" ${FLAGS:-}
}

ATTENDED=("most attended in 3 blocks .5" "most attended .5")
HALVES=("ToMe .5" "${ATTENDED[@]}")
STEM="ImagePiece with conv stem"
SMALL=(--at-once 1 3 8 --seconds 0.1)

for number in ${*:-1 2}; do
  # shellcheck disable=SC2086 # words
  case $number in
    1)
      for case in so400m vit_b deit_s; do
        speed 100 --cases $case --models half --at-once 1 8 256
      done
      ;;
    2)
      for case in so400m vit_b; do
        speed 200 --cases $case --models half "${SMALL[@]}" --beside timm timm-graphs
      done
      ;;
    3)
      speed 120 --cases deit_s --models "${HALVES[@]}" "$STEM" --gelus tanh exact \
        --size-forms direction bias
      speed 60 --cases deit_s --models "${ATTENDED[@]}" --reduction-forms exact fast
      ;;
    4)
      speed 110 --cases deit_ti --models "${HALVES[@]}" --gelus tanh exact --size-forms direction bias
      speed 60 --cases deit_ti --models "${ATTENDED[@]}" --reduction-forms exact fast
      ;;
    5)
      speed 80 --cases deit_s --models "$STEM" --dtype float32 --precisions default highest
      ;;
    6) speed 150 --cases so400m --models half "ToMe in 3 blocks .5" --at-once 256 8 1 ;;
    7) speed 150 --cases vit_l --models half --at-once 256 8 1 --reduction-forms exact fast ;;
    8)
      speed 110 --cases dinov3_l --models half --at-once 256 8 1
      speed 110 --cases so400m_384 --models half --at-once 256 8 3 1
      ;;
    9) speed 140 --cases vit_b clip_l --models half --at-once 256 8 1 ;;
    10) speed 150 --cases deit_ti deit_s ;;
    11)
      part 40 "$PYTHON" -m imagepiece_jax doctor
      part 120 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider
      ;;
    12)
      speed 150 --cases deit_s --models dense --gelus tanh exact --beside timm timm-tanh
      speed 150 --cases vit_l --models dense --gelus tanh exact --at-once 256 8 1 --beside timm
      ;;
    *)
      echo "error: $number is no part; allowed: 1 to 12" >&2
      exit 2
      ;;
  esac
done
if [ -e "$OUT/speeds.jsonl" ]; then
  "$PYTHON" -m tools.gpu_speed --show "$OUT/speeds.jsonl" | tee "$OUT/tables.md"
fi
