"""Runs that were made with ``vllm:NAME`` are still read; a vLLM server is reached through ``openai:``."""

from pathlib import Path

from gecko.config.stages import RelabelConfig
from gecko.core.errors import ConfigError
from gecko.core.files import digest
from gecko.core.progress import Ui
from gecko.llm import local
from gecko.llm.base import LanguageModel


def identity(spec: str) -> str:
    """See :class:`gecko.llm.base.Backend`."""
    found = local.identity(spec)
    return digest("vllm", found) if Path(spec.removeprefix("vllm:")).is_dir() else found


def load(spec: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    """See :class:`gecko.llm.base.Backend`. There is none to load."""
    raise ConfigError(
        f"--llm {spec}: start a vLLM server (vllm serve {spec.removeprefix('vllm:')} --no-enable-prefix-caching) "
        "and give its address, --llm openai:http://HOST:8000/v1#MODEL"
    )
