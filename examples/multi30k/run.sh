#!/bin/bash
# Multi30k, English to German, from raw text to BLEU.
#
#   examples/multi30k/run.sh CORPUS [OUT] [options for pyseq-train]
#
# CORPUS has train, val and test_2016_flickr, each .en and .de, plain or .gz. OUT (default: multi30k) gets everything that
# is made; what is there already is not made again, so the same command resumes. Options at the end win over the recipe's:
#   examples/multi30k/run.sh ~/multi30k/raw out --max-epoch 15 --seed 2
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
corpus=${1:?usage: run.sh CORPUS [OUT] [options for pyseq-train]}
out=${2:-multi30k}
shift $(( $# > 1 ? 2 : 1 ))

if [[ ! -f $out/bpe/test.de ]]; then
    python3 "$here/prepare.py" "$corpus" "$out/bpe"
fi

if [[ ! -f $out/data-bin/test.en-de.de.idx ]]; then
    pyseq-preprocess --source-lang en --target-lang de --joined-dictionary --workers "$(nproc)" \
        --trainpref "$out/bpe/train" --validpref "$out/bpe/valid" --testpref "$out/bpe/test" --destdir "$out/data-bin"
fi

pyseq-train "$out/data-bin" --save-dir "$out/checkpoints" --config "$here/train.yaml" "$@"

shopt -s nullglob
epochs=("$out"/checkpoints/checkpoint[0-9]*.pt)
model=$out/checkpoints/checkpoint_last.pt  # of a run that was stopped in its first epoch
if (( ${#epochs[@]} )); then
    model=$out/checkpoints/average.pt
    pyseq-average --inputs "$out/checkpoints" --output "$model" \
        --num-epoch-checkpoints $(( ${#epochs[@]} < 10 ? ${#epochs[@]} : 10 ))
fi

pyseq-generate "$out/data-bin" --path "$model" --source-lang en --target-lang de \
    --beam 5 --lenpen 1 --remove-bpe --max-tokens 4096 --results-path "$out"
tail -n 1 "$out/generate-test.txt"
