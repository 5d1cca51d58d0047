"""A teacher on vLLM, for a GPU: it batches and schedules by itself, so all pairs of a shard are handed over at once.

What is notable here:

- Prompts go in as token ids, cut and tokenised as in ``transformers.py``: no control token is parsed out of a passage, and
  the query's tokens are known without searching.
- One request gives both scores: ``prompt_logprobs`` for the query's tokens, and the labels' own log-probabilities
  (``logprob_token_ids``) at the first token of the answer, however unlikely they are.
- Prefix caching is off. With it ``prompt_logprobs`` of tokens that were cached come from another request
  (vllm-project/vllm#42019), so a passage is read once a query here.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gecko.errors import TeacherError
from gecko.llm.base import Group, Judgement, Sampling, Usage
from gecko.llm.transformers import TransformersLM
from gecko.model_files import why_not_loaded
from gecko.prompts import Prompt


class VllmLM(TransformersLM):
    """A model on vLLM as a teacher; it shares the tokenisation of prompts with :class:`TransformersLM`.

    Args:
        source: a folder or a name on the model hub.
        name: what to call it.
        identity: hash of its weights.
        passage_tokens: longer passages are cut to so many tokens, and counted in ``usage.truncated``.

    Raises:
        TeacherError: vLLM is not installed, or cannot load the model.
    """

    def __init__(self, source: str, *, name: str, identity: str, passage_tokens: int = 256) -> None:
        try:
            import vllm
        except ImportError as error:
            raise TeacherError(
                "--llm vllm:NAME needs vLLM and a GPU; install it in gecko's checkout with: pip install -c "
                "constraints-vllm.txt -e '.[vllm]'"
            ) from error
        self._vllm: Any = vllm
        try:
            self._engine: Any = vllm.LLM(model=source, dtype="auto", seed=0, enable_prefix_caching=False)
        except Exception as error:  # it and the libraries below raise many kinds
            raise TeacherError(
                f"teacher {name} cannot be loaded by vLLM: {why_not_loaded(Path(source), error)}"
            ) from error
        self.tokenizer = self._engine.get_tokenizer()
        self.name = name
        self.identity = identity
        self.passage_tokens = passage_tokens
        self.usage = Usage()
        self._cuts = {}

    def generate(
        self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
    ) -> list[str]:
        """See :class:`gecko.llm.base.LanguageModel`."""
        cut = self._cut(prompt)
        ids = [cut.preamble + body for body in self._bodies(cut, passages, variables)]
        settings = [
            self._vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
                stop=list(prompt.stop),
                skip_special_tokens=False,
            )
            for seed in sampling.seeds
        ]
        return [output.outputs[0].text for output in self._ask(ids, settings)]

    def _read(
        self, prompt: Prompt, groups: Sequence[Group], *, query: bool, labels: list[int]
    ) -> list[list[Judgement]]:
        """One request a pair that reads the query's tokens, the labels after the prompt's end, or both."""
        cut = self._cut(prompt)
        if not prompt.has_query:
            raise TeacherError(f"prompt {prompt.name!r} has no {{query}}, so there is nothing to score; add it")
        space = " " if cut.space_before_second else ""
        passages = self._passage_ids(cut, [group.passage for group in groups])
        tails = self._data_ids([space + text for group in groups for text in group.queries])
        starts = [
            cut.preamble + passage + cut.middle
            for passage, group in zip(passages, groups, strict=True)
            for _ in group.queries
        ]
        ids = [start + tail + (cut.end if labels else []) for start, tail in zip(starts, tails, strict=True)]
        settings = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0 if query else None,
            logprob_token_ids=labels or None,
            detokenize=False,
        )
        outputs = self._ask(ids, [settings] * len(ids))
        found = iter(
            self._judgement(output, len(start), tail if query else [], labels)
            for output, start, tail in zip(outputs, starts, tails, strict=True)
        )
        return [[next(found) for _ in group.queries] for group in groups]

    def _judgement(self, output: Any, start: int, tail: list[int], labels: list[int]) -> Judgement:
        total = 0.0
        if tail:
            given = output.prompt_logprobs
            if given is None or len(given) < start + len(tail):
                raise TeacherError(
                    f"vLLM gave {0 if given is None else len(given)} log-probabilities for a prompt of "
                    f"{start + len(tail)} tokens; update it to the version in constraints-vllm.txt"
                )
            total = math.fsum(given[start + place][token].logprob for place, token in enumerate(tail))
        answer: tuple[float, ...] = ()
        if labels:
            first = (output.outputs[0].logprobs or [{}])[0]
            if missing := [token for token in labels if token not in first]:
                raise TeacherError(
                    f"vLLM left out the log-probabilities of the tokens {missing}; update it to the version in "
                    "constraints-vllm.txt"
                )
            answer = tuple(first[token].logprob for token in labels)
        return Judgement(total, len(tail), answer)

    def _ask(self, ids: list[list[int]], settings: list[Any]) -> list[Any]:
        if not ids:
            return []
        prompts = [self._vllm.TokensPrompt(prompt_token_ids=one) for one in ids]
        try:
            outputs: list[Any] = self._engine.generate(prompts, settings, use_tqdm=False)
        except ValueError as error:  # a prompt longer than the window, say
            raise TeacherError(f"vLLM refuses a prompt of {self.name}: {error}") from error
        self.usage.read += sum(map(len, ids))
        self.usage.written += sum(len(output.outputs[0].token_ids) for output in outputs)
        return outputs
