#!/usr/bin/env bash
# All measurements that need a machine with one NVIDIA GPU, in sessions of less than nine
# minutes: `OUT=folder tools/gpu_session.sh 256`, then `1024`, then `train`. The first
# also times single reductions and the settings of docs/comparison.md, the second runs
# the tests.
#
# Needs the packages of requirements.txt, jax[cuda13], pytest, and for the baselines torch
# and timm. A part that fails or takes too long does not stop the others; what it measured
# is kept. Parts that stand first get their time, and the last ones what is left of it: in
# `256` the settings stand before the programs beside timm. $OUT gets log.txt and a
# JSON-lines file from each benchmark. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?name a folder: OUT=folder $0 256}"
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-530} # seconds of the whole session
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs memory as well
mkdir -p "$OUT"

part() { # name, seconds at most, command: runs it within the remaining session time
  local name=$1 most=$2 left=$((LIMIT - SECONDS)) began=$SECONDS status
  shift 2
  if ((left < 15)); then
    echo "== $name: no time left" | tee -a "$OUT/log.txt"
    return
  fi
  echo "== $name: $*" >> "$OUT/log.txt"
  timeout --kill-after=10 $((left < most ? left : most)) "$@" >> "$OUT/log.txt" 2>&1
  status=$?
  echo "== $name: exit $status after $((SECONDS - began)) s" | tee -a "$OUT/log.txt"
}

bench() { # name, seconds at most, flags: a benchmark that writes $OUT/name.jsonl
  local name=$1 most=$2 command="imagepiece_jax benchmark"
  shift 2
  case " $* " in *" --against "*) command=tools.torch_baselines ;; esac
  # shellcheck disable=SC2086 # words
  part "$name" "$most" "$PYTHON" -m $command --device gpu \
    --json "$OUT/$name.jsonl" "$@"
}

configs() { # files of configs/, such as deit_s.py:deit_ti -> flags
  local file
  for file in "$@"; do printf -- '--config\nconfigs/%s\n' "$file"; done
}

inference() { # batch size: the programs that are compared
  local all="deit_s.py deit_s_imagepiece.py deit_s_imagepiece_fast.py deit_s_evit.py deit_s_tome.py"
  bench "tanh_$1" 200 $(configs $all) $TANH --batch_size "$1" --against timm
  bench "exact_$1" 110 $(configs deit_s.py deit_s_imagepiece.py) \
    --batch_size "$1" --against timm
  bench "tiny_$1" 70 $(configs deit_s.py:deit_ti deit_s_imagepiece.py:deit_ti) $TANH --batch_size "$1"
}

TANH=--config.model.gelu=tanh
# A training step without the augmentation on the device.
PLAIN="--config.augment.layers=0 --config.augment.erase_prob=0 --config.mixup=0
  --config.cutmix=0 --config.ema_decay=0"

# shellcheck disable=SC2046,SC2086 # lists of words
case ${1:-256} in
  256)
    part doctor 40 "$PYTHON" -m imagepiece_jax doctor
    for size in deit_ti deit_s; do
      part "settings_$size" 110 "$PYTHON" -m tools.gpu_speed --size $size --batch 256 \
        --times "$OUT/settings.jsonl"
    done
    part reduction 60 "$PYTHON" -m tools.reduction_speed \
      --json "$OUT/reduction.json"
    part attention 40 "$PYTHON" -m tools.attention_speed --seconds 0.1 \
      --json "$OUT/attention.json"
    inference 256
    ;;
  1024)
    inference 1024
    part gpu_tests 120 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider
    ;;
  train)
    bench train 200 $(configs deit_s.py deit_s_imagepiece.py) --mode train $PLAIN \
      --against timm
    bench tome 90 $(configs deit_s_tome.py) $TANH --against tome
    bench sweep 200 $(configs deit_s.py deit_s_imagepiece.py) $TANH --warmup 10 \
      --seconds 0.3 --batch_size 1,2,4,8,16,32,64,128,512
    bench starts 60 $(configs deit_s.py deit_s_imagepiece.py) $TANH --mode copy
    ;;
  *)
    echo "error: $1 is no session; allowed: 256, 1024 and train" >&2
    exit 2
    ;;
esac
grep -hE "largest matmul rate|most attended|retokenize|prune|bipartite|passed|failed" "$OUT/log.txt" |
  cut -c 1-100
