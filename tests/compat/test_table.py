"""Every line of the table leads somewhere, and to the very objects that pyseq uses itself."""

from __future__ import annotations

import importlib

import pytest

from pyseq import compat
from pyseq.compat.alias import names_of, resolve
from pyseq.compat.table import MODULES, RENAMES, SHIMS

pytestmark = pytest.mark.skipif(not compat.install(), reason="the real fairseq is installed")

# What examples of fairseq and its tutorials import most (and pyseq has): module and names.
USED = {
    "fairseq": "checkpoint_utils data distributed_utils metrics models options scoring search tasks tokenizer utils",
    "fairseq.criterions": "FairseqCriterion LegacyFairseqCriterion register_criterion build_criterion",
    "fairseq.criterions.label_smoothed_cross_entropy": "LabelSmoothedCrossEntropyCriterion label_smoothed_nll_loss",
    "fairseq.data": "AppendTokenDataset BaseWrapperDataset ConcatDataset Dictionary FairseqDataset IdDataset encoders "
    "LanguagePairDataset MonolingualDataset NestedDictionaryDataset NumelDataset NumSamplesDataset PrependTokenDataset "
    "RightPadDataset StripTokenDataset TokenBlockDataset TruncateDataset TruncatedDictionary data_utils iterators",
    "fairseq.data.data_utils": "collate_tokens load_indexed_dataset numpy_seed post_process infer_language_pair",
    "fairseq.data.encoders": "build_bpe build_tokenizer register_bpe register_tokenizer",
    "fairseq.dataclass": "ChoiceEnum FairseqDataclass",
    "fairseq.dataclass.configs": "CheckpointConfig CommonConfig FairseqConfig GenerationConfig OptimizationConfig",
    "fairseq.dataclass.utils": "convert_namespace_to_omegaconf gen_parser_from_dataclass",
    "fairseq.incremental_decoding_utils": "with_incremental_state FairseqIncrementalState",
    "fairseq.logging": "meters metrics progress_bar",
    "fairseq.logging.meters": "AverageMeter StopwatchMeter TimeMeter",
    "fairseq.models": "BaseFairseqModel FairseqDecoder FairseqEncoder FairseqEncoderDecoderModel FairseqEncoderModel "
    "FairseqIncrementalDecoder FairseqLanguageModel FairseqModel register_model register_model_architecture",
    "fairseq.models.transformer": "TransformerModel TransformerEncoder TransformerDecoder Embedding Linear "
    "base_architecture transformer_iwslt_de_en transformer_wmt_en_de_big transformer_vaswani_wmt_en_de_big "
    "DEFAULT_MAX_SOURCE_POSITIONS DEFAULT_MAX_TARGET_POSITIONS TransformerConfig TransformerModelBase",
    "fairseq.models.transformer_lm": "TransformerLanguageModel TransformerLanguageModelConfig",
    "fairseq.modules": "FairseqDropout LayerNorm MultiheadAttention PositionalEmbedding TransformerDecoderLayer "
    "SinusoidalPositionalEmbedding LearnedPositionalEmbedding LayerDropModuleList TransformerEncoderLayer",
    "fairseq.modules.checkpoint_activations": "checkpoint_wrapper",
    "fairseq.optim": "FairseqOptimizer LegacyFairseqOptimizer register_optimizer build_optimizer",
    "fairseq.optim.lr_scheduler": "FairseqLRScheduler LegacyFairseqLRScheduler register_lr_scheduler",
    "fairseq.optim.adam": "FairseqAdam FairseqAdamConfig",
    "fairseq.scoring": "BaseScorer register_scorer build_scorer",
    "fairseq.sequence_generator": "SequenceGenerator EnsembleModel",
    "fairseq.tasks": "FairseqTask LegacyFairseqTask register_task setup_task",
    "fairseq.tasks.translation": "TranslationTask TranslationConfig load_langpair_dataset",
    "fairseq.tasks.language_modeling": "LanguageModelingTask LanguageModelingConfig",
    "fairseq.utils": "item move_to_cuda strip_pad eval_str_list get_perplexity make_positions softmax log_softmax "
    "fill_with_neg_inf convert_padding_direction get_incremental_state set_incremental_state resolve_max_positions "
    "split_paths set_torch_seed import_user_module get_activation_fn",
}  # fmt: skip


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_name_of_a_module_resolves(module: str) -> None:
    alias = importlib.import_module(module)
    for name in names_of(module):
        assert getattr(alias, name) is not None, f"{module}.{name}"


@pytest.mark.parametrize("module", sorted(USED))
def test_names_that_plugins_use(module: str) -> None:
    for name in USED[module].split():
        exec(f"from {module} import {name}")


def test_every_rename_is_used() -> None:
    def found(name: str) -> bool:
        for module in MODULES:
            try:
                resolve(module, name)
                return True
            except LookupError:
                pass
        return False

    assert [name for name in RENAMES if not found(name)] == []


def test_shims_belong_to_modules_of_the_table() -> None:
    assert set(SHIMS) <= set(MODULES)


def test_aliases_are_the_same_objects() -> None:
    import fairseq.models
    import fairseq.models.transformer as theirs
    from fairseq.criterions import FairseqCriterion, register_criterion
    from fairseq.data import Dictionary, FairseqDataset
    from fairseq.dataclass import FairseqDataclass
    from fairseq.optim.lr_scheduler import FairseqLRScheduler
    from fairseq.tasks import FairseqTask

    import pyseq.models.transformer as ours
    from pyseq import config, criterions, data, models, tasks
    from pyseq.optim import lr_scheduler

    assert fairseq.models.FairseqEncoder is models.Encoder
    assert fairseq.models.FairseqEncoderDecoderModel is models.EncoderDecoderModel
    assert fairseq.models.register_model is models.register_model
    assert theirs.TransformerModel is ours.TransformerModel
    assert theirs.transformer_vaswani_wmt_en_de_big is ours.transformer_vaswani_wmt_en_de_big
    assert FairseqCriterion is criterions.Criterion and register_criterion is criterions.register_criterion
    assert Dictionary is data.Dictionary and FairseqDataset is data.Dataset
    assert FairseqDataclass is config.ConfigGroup
    assert FairseqLRScheduler is lr_scheduler.LRScheduler and FairseqTask is tasks.Task
