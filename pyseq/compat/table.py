"""Which fairseq name stands for what in pyseq. To carry more of fairseq's names, add a line here.

Text only: nothing below is imported before a plug-in asks for it.
"""

from __future__ import annotations

# fairseq's module: the modules of pyseq that its names are looked up in, in this order.
MODULES: dict[str, tuple[str, ...]] = {
    "fairseq": ("pyseq",),
    "fairseq.checkpoint_utils": ("pyseq.training.checkpoint",),
    "fairseq.criterions": ("pyseq.criterions",),
    "fairseq.criterions.cross_entropy": ("pyseq.criterions.cross_entropy",),
    "fairseq.criterions.fairseq_criterion": ("pyseq.criterions.criterion",),
    "fairseq.criterions.label_smoothed_cross_entropy": ("pyseq.criterions.label_smoothed_cross_entropy",),
    "fairseq.data": ("pyseq.data",),
    "fairseq.data.append_token_dataset": ("pyseq.data.token_wrappers",),
    "fairseq.data.base_wrapper_dataset": ("pyseq.data.base_wrapper_dataset",),
    "fairseq.data.bucket_pad_length_dataset": ("pyseq.data.bucket_pad_length_dataset",),
    "fairseq.data.concat_dataset": ("pyseq.data.concat_dataset",),
    "fairseq.data.data_utils": ("pyseq.data.data_utils",),
    "fairseq.data.dictionary": ("pyseq.data.dictionary",),
    "fairseq.data.encoders": ("pyseq.data.encoders",),
    "fairseq.data.encoders.moses_tokenizer": ("pyseq.data.encoders.moses",),
    "fairseq.data.encoders.sentencepiece_bpe": ("pyseq.data.encoders.sentencepiece",),
    "fairseq.data.encoders.space_tokenizer": ("pyseq.data.encoders.space",),
    "fairseq.data.encoders.subword_nmt_bpe": ("pyseq.data.encoders.subword_nmt",),
    "fairseq.data.fairseq_dataset": ("pyseq.data.dataset",),
    "fairseq.data.id_dataset": ("pyseq.data.nested_dictionary_dataset",),
    "fairseq.data.indexed_dataset": (
        "pyseq.data.indexed_dataset",
        "pyseq.data.dataset_impl",
        "pyseq.data.indexed_format",
        "pyseq.data.raw_dataset",
    ),
    "fairseq.data.iterators": ("pyseq.data.iterators", "pyseq.data.batch_loader"),
    "fairseq.data.language_pair_dataset": ("pyseq.data.language_pair_dataset",),
    "fairseq.data.lm_context_window_dataset": ("pyseq.data.lm_context_window_dataset",),
    "fairseq.data.monolingual_dataset": ("pyseq.data.monolingual_dataset",),
    "fairseq.data.nested_dictionary_dataset": ("pyseq.data.nested_dictionary_dataset",),
    "fairseq.data.num_samples_dataset": ("pyseq.data.nested_dictionary_dataset",),
    "fairseq.data.numel_dataset": ("pyseq.data.nested_dictionary_dataset",),
    "fairseq.data.pad_dataset": ("pyseq.data.nested_dictionary_dataset",),
    "fairseq.data.prepend_token_dataset": ("pyseq.data.token_wrappers",),
    "fairseq.data.shorten_dataset": ("pyseq.data.token_wrappers",),
    "fairseq.data.strip_token_dataset": ("pyseq.data.token_wrappers",),
    "fairseq.data.token_block_dataset": ("pyseq.data.token_block_dataset",),
    "fairseq.dataclass": ("pyseq.config",),
    "fairseq.dataclass.configs": ("pyseq.config.groups", "pyseq.config.config"),
    "fairseq.dataclass.constants": ("pyseq.config",),
    "fairseq.dataclass.utils": ("pyseq.config",),
    "fairseq.distributed": ("pyseq.training.distributed",),
    "fairseq.distributed.utils": ("pyseq.training.distributed",),
    "fairseq.distributed_utils": ("pyseq.training.distributed",),
    "fairseq.file_io": ("pyseq.compat.file_io",),
    "fairseq.incremental_decoding_utils": ("pyseq.modules.incremental_state",),
    "fairseq.logging": ("pyseq",),
    "fairseq.logging.meters": ("pyseq.metrics.meters",),
    "fairseq.logging.metrics": ("pyseq.metrics",),
    "fairseq.logging.progress_bar": ("pyseq.training.progress",),
    "fairseq.meters": ("pyseq.metrics.meters",),
    "fairseq.metrics": ("pyseq.metrics",),
    "fairseq.models": ("pyseq.models",),
    "fairseq.models.fairseq_decoder": ("pyseq.models.decoder",),
    "fairseq.models.fairseq_encoder": ("pyseq.models.encoder",),
    "fairseq.models.fairseq_incremental_decoder": ("pyseq.models.incremental_decoder",),
    "fairseq.models.fairseq_model": ("pyseq.models.model",),
    "fairseq.models.transformer": ("pyseq.models.transformer", "pyseq.modules"),
    "fairseq.models.transformer.transformer_base": ("pyseq.models.transformer", "pyseq.modules"),
    "fairseq.models.transformer.transformer_config": ("pyseq.modules.transformer_config",),
    "fairseq.models.transformer.transformer_decoder": ("pyseq.models.transformer.transformer_decoder", "pyseq.modules"),
    "fairseq.models.transformer.transformer_encoder": ("pyseq.models.transformer.transformer_encoder", "pyseq.modules"),
    "fairseq.models.transformer.transformer_legacy": ("pyseq.models.transformer",),
    "fairseq.models.transformer_lm": ("pyseq.models.transformer_lm",),
    "fairseq.modules": ("pyseq.modules",),
    "fairseq.modules.checkpoint_activations": ("pyseq.modules.checkpoint_activations",),
    "fairseq.modules.fairseq_dropout": ("pyseq.modules.dropout",),
    "fairseq.modules.layer_drop": ("pyseq.modules.layer_drop",),
    "fairseq.modules.layer_norm": ("pyseq.modules.layer_norm",),
    "fairseq.modules.learned_positional_embedding": ("pyseq.modules.positional_embedding",),
    "fairseq.modules.multihead_attention": ("pyseq.modules.multihead_attention",),
    "fairseq.modules.positional_embedding": ("pyseq.modules.positional_embedding",),
    "fairseq.modules.quant_noise": ("pyseq.modules",),
    "fairseq.modules.sinusoidal_positional_embedding": ("pyseq.modules.positional_embedding",),
    "fairseq.modules.transformer_layer": ("pyseq.modules.transformer_layer",),
    "fairseq.optim": ("pyseq.optim",),
    "fairseq.optim.adafactor": ("pyseq.optim.adafactor",),
    "fairseq.optim.adam": ("pyseq.optim.adam",),
    "fairseq.optim.fairseq_optimizer": ("pyseq.optim.optimizer",),
    "fairseq.optim.fused_lamb": ("pyseq.optim.lamb",),
    "fairseq.optim.lr_scheduler": ("pyseq.optim.lr_scheduler",),
    "fairseq.optim.lr_scheduler.cosine_lr_scheduler": ("pyseq.optim.lr_scheduler.cosine",),
    "fairseq.optim.lr_scheduler.fairseq_lr_scheduler": ("pyseq.optim.lr_scheduler.lr_scheduler",),
    "fairseq.optim.lr_scheduler.fixed_schedule": ("pyseq.optim.lr_scheduler.fixed",),
    "fairseq.optim.lr_scheduler.inverse_square_root_schedule": ("pyseq.optim.lr_scheduler.inverse_sqrt",),
    "fairseq.optim.lr_scheduler.polynomial_decay_schedule": ("pyseq.optim.lr_scheduler.polynomial_decay",),
    "fairseq.optim.nag": ("pyseq.optim.nag",),
    "fairseq.optim.sgd": ("pyseq.optim.sgd",),
    "fairseq.options": ("pyseq.config.parser",),
    "fairseq.progress_bar": ("pyseq.training.progress",),
    "fairseq.registry": ("pyseq.registry",),
    "fairseq.scoring": ("pyseq.scoring",),
    "fairseq.scoring.bleu": ("pyseq.scoring.bleu", "pyseq.scoring.sacrebleu"),
    "fairseq.scoring.chrf": ("pyseq.scoring.chrf",),
    "fairseq.scoring.tokenizer": ("pyseq.scoring.tokenizer",),
    "fairseq.search": ("pyseq.generation.search",),
    "fairseq.sequence_generator": ("pyseq.generation",),
    "fairseq.sequence_scorer": ("pyseq.generation.sequence_scorer",),
    "fairseq.tasks": ("pyseq.tasks",),
    "fairseq.tasks.fairseq_task": ("pyseq.tasks.task",),
    "fairseq.tasks.language_modeling": ("pyseq.tasks.language_modeling",),
    "fairseq.tasks.translation": ("pyseq.tasks.translation",),
    "fairseq.tokenizer": ("pyseq.data.text_file",),
    "fairseq.utils": ("pyseq.utils",),
    "fairseq.version": ("pyseq.version",),
    # Two names that plug-ins need to write a dataclass; used only where omegaconf itself is not installed.
    "omegaconf": ("pyseq.compat.omegaconf",),
}

# fairseq's name: ours, in whichever module it is found.
RENAMES: dict[str, str] = {
    "BaseFairseqModel": "BaseModel",
    "BaseScorer": "Scorer",
    "CosineLRSchedule": "Cosine",
    "CosineLRScheduleConfig": "CosineConfig",
    "DistributedTrainingConfig": "DistributedConfig",
    "FairseqAdafactor": "AdafactorOptimizer",
    "FairseqAdam": "Adam",
    "FairseqAdamConfig": "AdamConfig",
    "FairseqBPE": "TextEncoder",
    "FairseqConfig": "Config",
    "FairseqCriterion": "Criterion",
    "FairseqDataclass": "ConfigGroup",
    "FairseqDataset": "Dataset",
    "FairseqDecoder": "Decoder",
    "FairseqDropout": "Dropout",
    "FairseqEncoder": "Encoder",
    "FairseqEncoderDecoderModel": "EncoderDecoderModel",
    "FairseqEncoderModel": "EncoderModel",
    "FairseqIncrementalDecoder": "IncrementalDecoder",
    "FairseqIncrementalState": "IncrementalState",
    "FairseqLAMB": "LAMBOptimizer",
    "FairseqLRScheduler": "LRScheduler",
    "FairseqLanguageModel": "LanguageModel",
    "FairseqModel": "EncoderDecoderModel",
    "FairseqNAG": "NAG",
    "FairseqOptimizer": "Optimizer",
    "FairseqTask": "Task",
    "FixedLRSchedule": "FixedLR",
    "FixedLRScheduleConfig": "FixedLRConfig",
    "IndexedRawTextDataset": "RawTextDataset",
    "InverseSquareRootLRScheduleConfig": "InverseSqrtConfig",
    "InverseSquareRootSchedule": "InverseSqrt",
    "LegacyFairseqTask": "LegacyTask",
    "PolynomialDecayLRSchedule": "PolynomialDecay",
    "PolynomialDecayLRScheduleConfig": "PolynomialDecayConfig",
    "StatefulContainer": "State",
    "TransformerDecoderBase": "TransformerDecoder",
    "TransformerDecoderLayerBase": "TransformerDecoderLayer",
    "TransformerEncoderBase": "TransformerEncoder",
    "TransformerEncoderLayerBase": "TransformerEncoderLayer",
    "TransformerModelBase": "TransformerModel",
}

_SHIMS = "pyseq.compat.shims:"
_LEGACY = "pyseq.compat.legacy:"
_REGISTRIES = "pyseq.compat.registries:"

# Names that need a few lines of their own, because ours differ in more than the name.
SHIMS: dict[str, dict[str, str]] = {
    "fairseq": {"__version__": _SHIMS + "FAIRSEQ_VERSION"},
    "fairseq.version": {"__version__": _SHIMS + "FAIRSEQ_VERSION"},
    "fairseq.checkpoint_utils": {
        name: _SHIMS + name
        for name in (
            "load_checkpoint_to_cpu",
            "load_model_ensemble",
            "load_model_ensemble_and_task",
            "load_pretrained_component_from_model",
        )
    },
    "fairseq.criterions": {
        "LegacyFairseqCriterion": _LEGACY + "LegacyCriterion",
        "CRITERION_REGISTRY": _REGISTRIES + "CRITERION_REGISTRY",
        "CRITERION_DATACLASS_REGISTRY": _REGISTRIES + "CRITERION_DATACLASS_REGISTRY",
    },
    "fairseq.criterions.fairseq_criterion": {"LegacyFairseqCriterion": _LEGACY + "LegacyCriterion"},
    "fairseq.dataclass": {"ChoiceEnum": _SHIMS + "ChoiceEnum"},
    "fairseq.dataclass.constants": {"ChoiceEnum": _SHIMS + "ChoiceEnum"},
    "fairseq.dataclass.configs": {"FairseqDataclass": "pyseq.config:ConfigGroup"},
    "fairseq.dataclass.utils": {
        "FairseqDataclass": "pyseq.config:ConfigGroup",
        "convert_namespace_to_omegaconf": "pyseq.config.config:config_from_args",
        "gen_parser_from_dataclass": _SHIMS + "gen_parser_from_dataclass",
    },
    **{
        module: {name: _SHIMS + name for name in ("get_rank", "get_world_size", "is_master")}
        | {"get_data_parallel_rank": _SHIMS + "get_rank", "get_data_parallel_world_size": _SHIMS + "get_world_size"}
        | {"get_global_rank": _SHIMS + "get_rank", "get_global_world_size": _SHIMS + "get_world_size"}
        for module in ("fairseq.distributed_utils", "fairseq.distributed.utils")
    },
    "fairseq.models": {
        name: _REGISTRIES + name
        for name in (
            "ARCH_CONFIG_REGISTRY",
            "ARCH_MODEL_INV_REGISTRY",
            "ARCH_MODEL_NAME_REGISTRY",
            "ARCH_MODEL_REGISTRY",
            "MODEL_DATACLASS_REGISTRY",
            "MODEL_REGISTRY",
        )
    },
    "fairseq.models.fairseq_encoder": {"EncoderOut": _SHIMS + "EncoderOut"},
    **{
        f"fairseq.models.transformer{module}": {"Linear": "pyseq.modules:xavier_linear"}
        for module in ("", ".transformer_base", ".transformer_decoder", ".transformer_encoder")
    },
    "fairseq.modules.checkpoint_activations": {"checkpoint_wrapper": _SHIMS + "checkpoint_wrapper"},
    "fairseq.modules.quant_noise": {"quant_noise": _SHIMS + "quant_noise"},
    "fairseq.optim": {
        "LegacyFairseqOptimizer": _LEGACY + "LegacyOptimizer",
        "OPTIMIZER_REGISTRY": _REGISTRIES + "OPTIMIZER_REGISTRY",
    },
    "fairseq.optim.fairseq_optimizer": {"LegacyFairseqOptimizer": _LEGACY + "LegacyOptimizer"},
    "fairseq.optim.lr_scheduler": {
        "LegacyFairseqLRScheduler": _LEGACY + "LegacyLRScheduler",
        "LR_SCHEDULER_REGISTRY": _REGISTRIES + "LR_SCHEDULER_REGISTRY",
    },
    "fairseq.optim.lr_scheduler.fairseq_lr_scheduler": {"LegacyFairseqLRScheduler": _LEGACY + "LegacyLRScheduler"},
    "fairseq.options": {
        "eval_bool": "pyseq.utils:eval_bool",
        "eval_str_list": "pyseq.utils:eval_str_list",
        "get_eval_lm_parser": _SHIMS + "get_eval_lm_parser",
        "get_generation_parser": _SHIMS + "get_generation_parser",
        "get_interactive_generation_parser": _SHIMS + "get_interactive_generation_parser",
        "get_training_parser": _SHIMS + "get_training_parser",
        "get_validation_parser": _SHIMS + "get_validation_parser",
        "parse_args_and_arch": _SHIMS + "parse_args_and_arch",
    },
    "fairseq.registry": {"REGISTRIES": _REGISTRIES + "REGISTRIES", "setup_registry": _REGISTRIES + "setup_registry"},
    "fairseq.scoring.bleu": {"Scorer": "pyseq.scoring.bleu:BleuScorer"},
    "fairseq.sequence_generator": {"BeamSearch": "pyseq.generation.search:BeamSearch"},
    "fairseq.tasks": {
        "TASK_DATACLASS_REGISTRY": _REGISTRIES + "TASK_DATACLASS_REGISTRY",
        "TASK_REGISTRY": _REGISTRIES + "TASK_REGISTRY",
    },
    "fairseq.tokenizer": {"SPACE_NORMALIZER": _SHIMS + "SPACE_NORMALIZER"},
    "fairseq.utils": {
        name: _SHIMS + name
        for name in ("get_perplexity", "import_user_module", "safe_getattr", "safe_hasattr", "set_torch_seed")
    },
}

# Added to the message for a name that a module does not have.
NOTES: dict[str, str] = {"omegaconf": "It is not installed; these two names of it are built in: II, MISSING."}
