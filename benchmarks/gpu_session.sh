#!/usr/bin/env bash
# Everything that needs a CUDA device, in one call: build, tests, measurements; a short table last.
#
#   benchmarks/gpu_session.sh [OUT]
#
# Builds without isolation (pybind11, cmake and ninja must be there) and without a network. OUT gets the logs and the JSON
# of every benchmark (default: benchmarks/results/gpu). A step that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
summary=()

step() {  # name, command ...
  local name=$1 start=$SECONDS; shift
  if "$@" > "$out/$name.log" 2>&1; then local verdict=ok; else local verdict=FAILED; fi
  summary+=("$(printf '%-16s %-7s %4d s  %s' "$name" "$verdict" $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c1-100)")")
}

export PYTHONPATH=$PWD
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/device.txt"
step build python -m pip install --no-deps --no-build-isolation -e .
step backends python -m pyseq.ops
step gpu_tests python -m pytest -q -m gpu
step ops_tests python -m pytest -q tests/ops tests/cuda tests/modules tests/models
step corpus python examples/number_words/make_corpus.py "$out/corpus"
step preprocess python -m pyseq.cli.preprocess -s en -t de --trainpref "$out/corpus/train" --validpref "$out/corpus/valid" \
  --destdir "$out/data-bin"
for precision in fp32 bf16; do
  flag=$([ $precision = bf16 ] && echo --bf16)
  step "train_$precision" python -m pyseq.cli.train "$out/data-bin" --arch transformer_iwslt_de_en --optimizer adam --lr 5e-4 \
    --lr-scheduler inverse_sqrt --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 16384 \
    --max-update 300 --disable-validation --no-save --log-format simple --log-interval 100 $flag
done
echo; echo "step             verdict   time  last line"
printf '%s\n' "${summary[@]}"
