"""The toy world's pretraining texts as a random-access source of token ids, for Grain."""

import functools
from dataclasses import dataclass
from typing import Any

from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.tasks import example_text


# Grain's workers receive the source pickled, so it holds the tokenizer's folder and not the
# tokenizer; each process loads that once.
@functools.cache
def _tokenizer(folder: str) -> Any:
    return tokenizers.load(folder)


@dataclass(frozen=True, kw_only=True)
class ToyTexts:
    """Record i is (prompt ids, completion ids) of text i of (world, seed), for i < `size`.

    A text over either limit (in tokens) is replaced by the first of the texts i + size, i + 2 size,
    ... within both: record i depends on nothing but i, whichever worker reads it. Raises
    AssertionError if none of the first hundred fits.
    """

    world: str
    seed: int
    size: int
    tokenizer_folder: str
    max_prompt_tokens: int
    max_completion_tokens: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> tuple[list[int], list[int]]:
        tokenizer = _tokenizer(self.tokenizer_folder)
        # 100 is chosen, not measured: limits that reject this many texts are a wrong setting.
        for attempt in range(100):
            turn, response = example_text(self.world, self.seed, int(index) + attempt * self.size)
            chat = [[{"role": "user", "content": turn}]]
            (prompt_ids,) = tokenizers.prompt_ids(tokenizer, chat)
            (completion_ids,) = tokenizers.encode(tokenizer, [response])
            completion_ids = [*completion_ids, tokenizer.eos_token_id]
            if (
                len(prompt_ids) <= self.max_prompt_tokens
                and len(completion_ids) <= self.max_completion_tokens
            ):
                return prompt_ids, completion_ids
        raise AssertionError(f"100 successive texts from record {index} on exceed the limits")
