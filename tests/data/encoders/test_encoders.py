from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from pyseq.data.encoders import BPE, TOKENIZERS, build_bpe, build_tokenizer
from pyseq.data.encoders.moses import MosesTokenizerConfig
from pyseq.data.encoders.sentencepiece import SentencePieceConfig
from pyseq.data.encoders.subword_nmt import SubwordNMTConfig
from pyseq.errors import ConfigError

CORPUS = "the lowest of the low tower was slower than the newest of the new towers\n" * 20


def test_what_is_registered() -> None:
    assert {"moses", "space"} <= set(TOKENIZERS.names())
    assert {"sentencepiece", "subword_nmt"} <= set(BPE.names())
    assert build_bpe(None) is None
    assert build_tokenizer(Namespace(tokenizer=None)) is None
    with pytest.raises(ConfigError, match="Did you mean 'subword_nmt'"):
        build_bpe("subword-nmt")


def test_space() -> None:
    tokenizer = build_tokenizer(Namespace(tokenizer="space"))
    assert tokenizer is not None
    assert tokenizer.encode("a\t b\u3000c") == "a b c"
    assert tokenizer.decode("a  b") == "a  b"


def test_moses_follows_the_languages() -> None:
    pytest.importorskip("sacremoses")
    tokenizer = build_tokenizer(Namespace(tokenizer="moses", source_lang="en", target_lang="fr"))
    assert tokenizer is not None
    assert tokenizer.encode('Mr. O\'Neill said "well-known".') == (
        "Mr. O &apos;Neill said &quot; well @-@ known &quot; ."
    )
    assert tokenizer.decode("l&apos; arbre est &quot; grand &quot; .") == 'l\'arbre est "grand".'


def test_moses_options() -> None:
    pytest.importorskip("sacremoses")
    cfg = MosesTokenizerConfig(_name="moses", moses_no_dash_splits=True, moses_no_escape=True)
    cfg.source_lang = None  # type: ignore[assignment]  # as when the task finds its languages in the data
    tokenizer = build_tokenizer(cfg)
    assert tokenizer is not None
    assert tokenizer.encode('a "well-known" one') == 'a " well-known " one'


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    learn_bpe = pytest.importorskip("subword_nmt.learn_bpe")
    path = tmp_path / "codes"
    with open(path, "w", encoding="utf-8") as file:
        learn_bpe.learn_bpe(CORPUS.splitlines(), file, num_symbols=8)
    return path


def test_subword_nmt(codes: Path) -> None:
    bpe = build_bpe(Namespace(bpe="subword_nmt", bpe_codes=str(codes), bpe_separator="@@"))
    assert bpe is not None
    encoded = bpe.encode("the newest tower")
    assert encoded.startswith("the ") and "@@ " in encoded
    assert bpe.decode(encoded) == "the newest tower"
    other = build_bpe(SubwordNMTConfig(_name="subword_nmt", bpe_codes=str(codes), bpe_separator="\uffed"))
    assert other is not None
    assert other.encode("the newest tower") == encoded.replace("@@", "\uffed")
    assert other.decode(other.encode("the newest tower")) == "the newest tower"


def test_subword_nmt_makes_the_reference_text(reference: Path) -> None:
    pytest.importorskip("subword_nmt")
    bpe = build_bpe(Namespace(bpe="subword_nmt", bpe_codes=str(reference / "text" / "codes")))
    assert bpe is not None
    for line in (reference / "text" / "val.de").read_text(encoding="utf-8").splitlines()[:100]:
        assert bpe.encode(bpe.decode(line)) == line


def test_sentencepiece(tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus").write_text(CORPUS)
    prefix = str(tmp_path / "spm")
    package.SentencePieceTrainer.Train(
        input=str(tmp_path / "corpus"), model_prefix=prefix, vocab_size=40, hard_vocab_limit=False, minloglevel=2
    )
    cfg = SentencePieceConfig(_name="sentencepiece", sentencepiece_model=prefix + ".model")
    bpe = build_bpe(cfg)
    assert bpe is not None
    encoded = bpe.encode("the newest tower")
    assert encoded == bpe.encode("the newest tower") and encoded.startswith("\u2581")
    assert bpe.decode(encoded) == "the newest tower"
    assert [bpe.is_beginning_of_word(piece) for piece in ("\u2581the", "est", "<unk>")] == [  # type: ignore[attr-defined]
        True, False, True
    ]  # fmt: skip
    cfg.sentencepiece_enable_sampling, cfg.sentencepiece_alpha = True, 0.1
    sampled = build_bpe(cfg)
    assert sampled is not None
    samples = {sampled.encode("the newest tower") for _ in range(30)}
    assert len(samples) > 1 and {sampled.decode(sample) for sample in samples} == {"the newest tower"}


@pytest.mark.parametrize("name, flag", [("subword_nmt", "--bpe-codes"), ("sentencepiece", "--sentencepiece-model")])
def test_model_files_that_cannot_be_read(tmp_path: Path, name: str, flag: str) -> None:
    pytest.importorskip(name)
    option = flag.strip("-").replace("-", "_")
    with pytest.raises(ConfigError, match=f"--bpe {name} needs {flag} FILE"):
        build_bpe(Namespace(bpe=name))
    with pytest.raises(ConfigError, match=f"{flag} .*nothing: no such file"):
        build_bpe(Namespace(bpe=name, **{option: str(tmp_path / "nothing")}))
    (tmp_path / "damaged").write_text("three words here\n")
    with pytest.raises(ConfigError, match=f"{flag} .*damaged: not a"):
        build_bpe(Namespace(bpe=name, **{option: str(tmp_path / "damaged")}))


@pytest.mark.parametrize("registry, name", [(BPE, "subword_nmt"), (BPE, "sentencepiece"), (TOKENIZERS, "moses")])
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, registry: object, name: str) -> None:
    for package in ("subword_nmt", "subword_nmt.apply_bpe", "sentencepiece", "sacremoses"):
        monkeypatch.setitem(sys.modules, package, None)
    build = build_bpe if registry is BPE else build_tokenizer
    option = {"bpe" if registry is BPE else "tokenizer": name, "bpe_codes": __file__, "sentencepiece_model": __file__}
    with pytest.raises(ConfigError, match=r"pip install pyseq\[bpe\]"):
        build(Namespace(**option))
