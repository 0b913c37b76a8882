#!/usr/bin/env bash
# All measurements that need a machine with one NVIDIA GPU, in numbered parts, the most
# valuable first: `OUT=folder tools/gpu_session.sh` runs 1 to 4 on an H100 or H200 until
# LIMIT seconds are over, and `OUT=folder tools/gpu_session.sh 5 6` these two, alone or
# again. Parts 1 to 4 have so400m, the model that loses most at one image, first.
#
#   part  what                                                            seconds, guessed
#   1     a call's part of the host; padded products or not, batches 1 to 256         200
#   2     one to eight images: options of XLA, each beside the default                  300
#   3     one to eight images: flags of XLA's process                                   200
#   4     one to eight images beside timm's, in its own CUDA graphs and without         300
#   5     DeiT-S at half the MACs, ImagePiece with its stem                             70
#   6     DeiT-Ti at half the MACs                                                      80
#   7     ImagePiece with its stem in float32, with and without TF32                    30
#   8     SigLIP So400m/14 at 224, batches 256, 8 and 1, and ToMe in three blocks        80
#   9     ViT-L/16, batches 256, 8 and 1, exact and fast reductions                     70
#   10    DINOv3-L/16 at 512 and So400m/14 at 384                                      130
#   11    ViT-B/16 and CLIP-L/14 at 336                                                 90
#   12    all settings of docs/comparison.md, which are in README's columns             90
#   13    doctor, and the tests that need a GPU                                        120
#   14    training steps beside timm's                           140
#   15    the dense DeiT-S and ViT-L beside timm's                                     200
#
# Parts 5 to 9, 11 and 14 took as long on an H200 with 16 cores, of which eight programs
# compile at a time: 2 to 15 s each. torch.compile takes all cores, in which time they
# took 30 to 115 s, so timm's models have a part of their own. Others are guessed. A GPU
# machine needs jax[cuda13], flax, tyro, torch and timm, and for part 13 pytest; no network,
# no configs and no data. A call has a time limit of its own, and one that fails stops no
# other; what it measured is kept. $OUT gets speeds.jsonl, train.json, log.txt and
# tables.md. PYTHON names the interpreter. FLAGS are added to all calls of gpu_speed,
# such as FLAGS=--smoke to try the script.
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
OPTIONS=(unpadded convolutions "graphs of 1" "all of these")
# XLA reads these once, as it starts.
FLAGS_OF_XLA=(
  --xla_gpu_command_buffer_update_mode=CAPTURE_CMD_NEVER_UPDATE
  --xla_gpu_command_buffer_update_mode=NEVER_UPDATE
  --xla_gpu_enable_pdl=true
)

for number in ${*:-1 2 3 4}; do
  # shellcheck disable=SC2086 # words
  case $number in
    1)
      for case in so400m vit_b deit_s; do
        speed 100 --cases $case --models half --at-once 1 8 256 \
          --xla default unpadded
      done
      ;;
    2)
      for case in so400m vit_b; do
        for option in "${OPTIONS[@]}"; do
          speed 60 --cases $case --models half "${SMALL[@]}" \
            --xla default "$option"
        done
      done
      ;;
    3)
      for case in so400m vit_b; do
        for flags in "${FLAGS_OF_XLA[@]}"; do
          export XLA_FLAGS=$flags
          speed 60 --cases $case --models half "${SMALL[@]}"
        done
      done
      unset XLA_FLAGS
      ;;
    4)
      for case in so400m vit_b; do
        speed 200 --cases $case --models half "${SMALL[@]}" --beside timm timm-graphs
      done
      ;;
    5)
      speed 120 --cases deit_s --models "${HALVES[@]}" "$STEM" --gelus tanh exact \
        --size-forms direction bias
      speed 60 --cases deit_s --models "${ATTENDED[@]}" --reduction-forms exact fast
      ;;
    6)
      speed 110 --cases deit_ti --models "${HALVES[@]}" --gelus tanh exact --size-forms direction bias
      speed 60 --cases deit_ti --models "${ATTENDED[@]}" --reduction-forms exact fast
      ;;
    7)
      speed 80 --cases deit_s --models "$STEM" --dtype float32 --precisions default highest
      ;;
    8) speed 150 --cases so400m --models half "ToMe in 3 blocks .5" --at-once 256 8 1 ;;
    9) speed 150 --cases vit_l --models half --at-once 256 8 1 --reduction-forms exact fast ;;
    10)
      speed 110 --cases dinov3_l --models half --at-once 256 8 1
      speed 110 --cases so400m_384 --models half --at-once 256 8 3 1
      ;;
    11) speed 140 --cases vit_b clip_l --models half --at-once 256 8 1 ;;
    12) speed 150 --cases deit_ti deit_s ;;
    13)
      part 40 "$PYTHON" -m imagepiece_jax doctor
      part 120 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider
      ;;
    14)
      part 240 "$PYTHON" -m tools.torch_baselines deit_s --reductions imagepiece \
        --json "$OUT/train.json"
      ;;
    15)
      speed 150 --cases deit_s --models dense --gelus tanh exact --beside timm timm-tanh
      speed 150 --cases vit_l --models dense --gelus tanh exact --at-once 256 8 1 --beside timm
      ;;
    *)
      echo "error: $number is no part; allowed: 1 to 15" >&2
      exit 2
      ;;
  esac
done
if [ -e "$OUT/speeds.jsonl" ]; then
  "$PYTHON" -m tools.gpu_speed --show "$OUT/speeds.jsonl" | tee "$OUT/tables.md"
fi
