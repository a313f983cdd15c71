#!/usr/bin/env bash
# Everything that needs a CUDA device: build, checks, measurements; a short table last.
#
#   benchmarks/gpu_session.sh check OUT      build, sanitizer, GPU tests, training in fp32 and bf16
#   benchmarks/gpu_session.sh measure OUT    whole runs (transformer_big, gpt2-medium, beam search: tokens a second, share of
#                                            the matrix rate), waits of the host, then the operations; and pictures
#   benchmarks/gpu_session.sh all OUT
#
# Each part ends within ten minutes ($BUDGET seconds): every step has a time limit, gets no more than is left, and one that
# fails or runs into it does not stop the others; cases that were measured until then are kept. OUT (default:
# benchmarks/results/gpu) gets runs.json, ops.json, pictures, trace.json and a log of each part. Nothing is fetched from
# a network. A folder of wheels, .whl/ or $WHEELS, is installed first into build/site: put there what the machine lacks of
# pybind11, cmake, ninja, numpy, pyyaml, sacrebleu, tqdm, pytest, hypothesis, and peers to measure against (liger_kernel,
# flash_attn, quack, bitsandbytes).
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:-all}
out=${2:-benchmarks/results/gpu}
python=${PYTHON:-python3}
wheels=${WHEELS:-.whl}
mkdir -p "$out" build/site
out=$(cd "$out" && pwd)
logs=$(mktemp -d)
summary=()
budget=${BUDGET:-570}
[ "$part" = all ] && budget=$((2 * budget))

step() {  # name, seconds, command ...
  local name=$1 limit=$2 start=$SECONDS left=$((budget - SECONDS)) verdict; shift 2
  if ((left < 10)); then summary+=("$(printf '%-14s %-9s' "$name" "NO TIME")"); return; fi
  timeout -k 5 "$((limit < left ? limit : left))" "$@" > "$logs/$name" 2>&1
  case $? in 0) verdict=ok ;; 124|137) verdict="TIME OUT" ;; *) verdict=FAILED ;; esac
  { echo "== $name: $*"; cat "$logs/$name"; } >> "$out/$part.log"
  summary+=("$(printf '%-14s %-9s %4d s  %s' "$name" "$verdict" $((SECONDS - start)) "$(tail -n 1 "$logs/$name" | cut -c1-110)")")
}

build() {
  cmake -S . -B build/gpu -G Ninja -DPYSEQ_TESTS=ON -DPYSEQ_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native \
    -DPython_EXECUTABLE="$(command -v "$python")" &&
    cmake --build build/gpu && ln -sfn ../kernels pyseq/kernels
}

sanitize() {  # the torch-free driver of the CUDA kernels
  local driver=build/gpu/cuda_driver tool
  [ -x $driver ] || { echo "$driver was not built"; return 1; }
  for tool in memcheck racecheck initcheck synccheck; do
    compute-sanitizer --tool $tool --error-exitcode 1 $driver || return 1
  done
}

corpus() {
  "$python" examples/number_words/make_corpus.py "$logs/corpus" &&
    "$python" -m pyseq.cli.preprocess -s en -t de --trainpref "$logs/corpus/train" --validpref "$logs/corpus/valid" \
      --destdir "$logs/data-bin"
}

train() {  # further arguments
  "$python" -m pyseq.cli.train "$logs/data-bin" --arch transformer_iwslt_de_en --optimizer adam --lr 5e-4 \
    --lr-scheduler inverse_sqrt --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 16384 \
    --max-update 300 --disable-validation --no-save --log-format simple --log-interval 100 "$@"
}

stream() {  # a binarised corpus for a language model
  "$python" -c 'import sys; from benchmarks import corpora; print(corpora.invented_stream())' > "$logs/stream-folder"
}

host_waits() {  # between updates of a bf16 language model
  "$python" -m benchmarks.host_syncs "$out/trace.json" "$(tail -n 1 "$logs/stream-folder")" --task language_modeling \
    --arch transformer_lm_gpt2_small --share-decoder-input-output-embed --optimizer adam --lr 1e-4 \
    --lr-scheduler inverse_sqrt --criterion cross_entropy --tokens-per-sample 1024 --max-tokens 8192 --clip-norm 1 --bf16
}

# timeout starts processes, not functions of this shell: hand the functions on
export -f build sanitize corpus train stream host_waits
export python logs out PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD:$PWD/build/site PATH=$PWD/build/site/bin:$PATH
: > "$out/$part.log"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$out/$part.log"
if compgen -G "$wheels/*.whl" > /dev/null; then
  step wheels 60 "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/site "$wheels"/*.whl
fi
step build 150 bash -c build
step backends 30 "$python" -m pyseq.ops
if [ "$part" != measure ]; then
  step sanitizer 60 bash -c sanitize
  step gpu_tests 130 "$python" -m pytest -q -m gpu
  step corpus 30 bash -c corpus
  step train_fp32 60 bash -c train
  step train_bf16 60 bash -c 'train --bf16'
fi
if [ "$part" != check ]; then
  step runs 330 "$python" -m benchmarks run train/ switches/ generate/ --device cuda --turns 2 --check --json "$out/runs.json"
  step stream 20 bash -c stream
  step host_waits 40 bash -c host_waits
  step ops 320 "$python" -m benchmarks.ops --device cuda --seconds 3 --turns 15 --check --json "$out/ops.json"
  for picture in runs ops; do
    step "picture_$picture" 20 "$python" -m benchmarks plot "$out/$picture.json" "$out/$picture.svg"
  done
  for name in runs ops; do
    "$python" -m benchmarks report "$out/$name.json" 2> /dev/null | sed -n '/^case .*verdict/,$p'
  done
  tail -n 2 "$logs/host_waits"
fi
echo; echo "step           verdict    time  last line"
printf '%s\n' "${summary[@]}" | tee -a "$out/$part.log"
rm -rf "$logs"
