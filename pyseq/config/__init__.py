"""Options: dataclasses whose fields are flags, the two-pass parser, YAML files, and the run's :class:`Config`."""

from pyseq.config import groups
from pyseq.config.group import II, ChoiceEnum, ConfigGroup, group_from

__all__ = ["II", "ChoiceEnum", "ConfigGroup", "group_from", "groups"]
