#!/usr/bin/env bash
# Multi30k, English to German, from raw text to BLEU: the tiny recipe.
#
#   run.sh RAW WORK [pyseq-train options ...]
#
# RAW has train, val and test_2016_flickr, each with .en.gz and .de.gz (Multi30k task 1). WORK is made and filled; running
# again goes on where an earlier run stopped. Options at the end go to pyseq-train (--max-epoch 15, say).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8p' "$0"; exit 1; }
raw=$1 work=$2; shift 2
text=$work/text data=$work/data-bin save=$work/checkpoints
mkdir -p "$text"

tokenize() {  # Moses, lower case; the command line of sacremoses would escape apostrophes
  python -c '
import sys
from sacremoses import MosesPunctNormalizer, MosesTokenizer
normalize, tokenize = MosesPunctNormalizer(sys.argv[1]).normalize, MosesTokenizer(sys.argv[1]).tokenize
for line in open(0, encoding="utf-8"):
    print(tokenize(normalize(line.strip()), escape=False, return_str=True).lower())
' "$1"
}

if [ ! -f "$data/dict.de.txt" ]; then
  for split in train val test_2016_flickr; do
    for lang in en de; do
      gunzip -c "$raw/$split.$lang.gz" | tokenize $lang > "$text/$split.tok.$lang"
    done
  done
  cat "$text"/train.tok.{en,de} | subword-nmt learn-bpe -s 10000 > "$text/codes"
  for file in "$text"/*.tok.??; do
    subword-nmt apply-bpe -c "$text/codes" < "$file" > "${file/.tok./.}"
  done
  pyseq-preprocess --source-lang en --target-lang de --joined-dictionary --workers 2 --destdir "$data" \
    --trainpref "$text/train" --validpref "$text/val" --testpref "$text/test_2016_flickr"
fi

pyseq-train "$data" --save-dir "$save" --seed 1 --num-workers 0 \
  --arch transformer_iwslt_de_en --share-all-embeddings --encoder-layers 4 --decoder-layers 4 \
  --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256 \
  --encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0.3 \
  --criterion label_smoothed_cross_entropy --label-smoothing 0.1 \
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 25 \
  --lr-scheduler inverse_sqrt --lr 0.005 --warmup-updates 2000 --warmup-init-lr 1e-7 \
  --max-tokens 4096 --update-freq 2 --max-update 8000 --patience 10 --keep-last-epochs 10 "$@"

pyseq-average --inputs "$save" --num-epoch-checkpoints 10 --output "$save/average.pt"
pyseq-generate "$data" --path "$save/average.pt" --beam 5 --remove-bpe --batch-size 128 --results-path "$work"
tail -n 1 "$work/generate-test.txt"
