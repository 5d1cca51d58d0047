from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from gecko.llm.tree import Segments
from gecko.prompts import Prompt, Variable

LIKELIHOOD = Prompt(
    "likelihood", "completion", "Read.\n\nPassage: {passage}\nQuery: {query}", (), (), (), (), "likelihood"
)
RELEVANCE = Prompt(
    "relevance",
    "chat",
    "",
    (("system", "You judge."), ("user", "Relevant?\n\nPassage: {passage}\n\nQuery: {query}")),
    ("Y", "N"),
    (),
    (),
    "relevance",
)
VARIED = Prompt(
    "varied",
    "completion",
    "Write.\n\nPassage: {passage}\nWanted: a query{variables}.\nTask:",
    *((), (), ("\n",), ()),
    "varied",
    variables=(Variable("who", ", by {value}", {}),),
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READ_BY_THE_TOKENIZER = (
    "The passage is followed by a query that it answers. Passage: the red river runs under the old stone bridge. "
    "Query: where does the river run? Passage: a bird sleeps in the garden tree. Query: which bird sleeps in a tree? "
    "Task: given a question, find the passage. Does the passage answer the query? Reply with Y or N."
    + " incomprehensibilities"
    * 9
)


def _tokenizer(bos: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *([bos] if bos else [])]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([READ_BY_THE_TOKENIZER] * 3, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=bos
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (bos or "") + CHATML
    return tokenizer


def save(folder: Path, config: Any, bos: str | None) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer(bos)
    config.vocab_size = len(tokenizer)
    config.eos_token_id = tokenizer.eos_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # far from uniform, so that what is read makes a difference
}


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Qwen2 of 2 layers with grouped heads, byte-level BPE and ChatML; no BOS."""
    from transformers import Qwen2Config

    return save(tmp_path_factory.mktemp("qwen"), Qwen2Config(**SIZE, tie_word_embeddings=True), None)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama, untied, whose tokenizer puts a BOS in front."""
    from transformers import LlamaConfig

    return save(tmp_path_factory.mktemp("llama"), LlamaConfig(**SIZE, tie_word_embeddings=False), "<|bos|>")


@pytest.fixture(autouse=True)
def _apart(own_cache: Path) -> None:
    """Nothing here may touch the user's cache."""


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    asks: Segments,
    sees: Segments,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`gecko.llm.tree.flash` computes, segment by segment, on any device."""
    output, logsumexp = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    share = query.shape[1] // key.shape[1]
    starts, keys = asks.starts.tolist(), sees.starts.tolist()
    used = [end - start for start, end in pairwise(keys)] if sees.used is None else sees.used.tolist()
    for number, (first, last) in enumerate(pairwise(starts)):
        part = slice(keys[number], keys[number] + used[number])
        own = query[first:last].transpose(0, 1).float()  # (H, q, D)
        others = key[part].repeat_interleave(share, dim=1).permute(1, 2, 0).float()  # (H, D, k)
        scores = scale * (own @ others)
        if causal:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=query.device)
            scores = scores.masked_fill(hidden.triu(1 + scores.shape[2] - scores.shape[1]), -torch.inf)
        logsumexp[:, first:last] = scores.logsumexp(dim=-1)
        powers = scores.softmax(dim=-1) @ value[part].repeat_interleave(share, dim=1).transpose(0, 1).float()
        output[first:last] = powers.transpose(0, 1).to(output.dtype)
    return output, logsumexp
