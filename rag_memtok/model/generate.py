"""A cached decode in progress.

It is the one decoder of this package, for judging, auditing and answering.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.model.lm import LM


class KVDecoder:
    """Decodes with a KV cache after some input embeddings.

    `logits` are for the next position, `feed` goes on by one token.

    Rows of different length are padded on the left and masked. Without padding no mask and no
    positions are given, so that batch 1 is the plainest decode there is.
    """

    cache: Any = None  # transformers', once something was run

    def __init__(
        self,
        lm: LM,
        rows: Sequence[Float[Tensor, "_ d"]],
        shared: Float[Tensor, "_ d"] | None = None,
    ) -> None:
        """Runs the prompts: `shared`, if any, stands before every row and is run once.

        Cost: one forward pass over the longest row, for each row, and one over `shared` (for each
            row if attention slides).
        """
        # padding after it would push it out of the window
        if shared is not None and getattr(lm.model.config, "sliding_window", None):
            rows, shared = [torch.cat([shared, row]) for row in rows], None
        longest = max(len(row) for row in rows)
        self.lm, self.padding, self.length = lm, None, 0
        if shared is not None:
            self._run(shared[None])
            self.cache.batch_repeat_interleave(len(rows))
        self.shared = self.length
        batch = torch.stack(
            [torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows]
        )
        padding = torch.tensor([longest - len(row) for row in rows], device=lm.device)
        self.padding = padding if int(padding.max()) else None
        self.logits = self._run(batch)

    def feed(self, tokens: Sequence[int]) -> Float[Tensor, "B V"]:
        """Appends one token to each row and returns the logits for the position after it."""
        self.logits = self._run(self.lm.embed(list(tokens))[:, None])
        return self.logits

    @torch.inference_mode()
    def _run(self, embeddings: Float[Tensor, "B S d"]) -> Float[Tensor, "B V"]:
        options: dict[str, Any] = {}
        start, self.length = self.length, self.length + embeddings.shape[1]
        if self.padding is not None:
            places = torch.arange(self.length, device=self.lm.device)[None]
            options["attention_mask"] = (
                (places < self.shared) | (places >= self.shared + self.padding[:, None])
            ).long()
            options["position_ids"] = (places[:, start:] - self.padding[:, None]).clamp(min=0)
        output = self.lm.model.base_model(
            inputs_embeds=embeddings.to(self.lm.table.dtype),
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        self.cache = output.past_key_values
        return self.lm.logits(output.last_hidden_state[:, -1])
