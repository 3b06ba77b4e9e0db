"""A BERT that predicts hidden words, to be trained before it is fine-tuned (Devlin et al., 2019).

B texts, T tokens, H numbers a token, N hidden tokens, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn

from research.data.spec import Spec
from research.engine.pretrained import encoder
from research.engine.values import PositiveInt, Probability


class MaskedBert(nn.Module):
    """`base` reads, `head` predicts; its last matrix is that of the word embeddings. Needs `task=masked`.

    Args:
        pretrained: as of `model=bert`; None for random weights.
        dropout: before the head.
        architecture: arguments of BertConfig, for random weights.

    Raises:
        ValueError: x is not text, or the weights are not to be had, or its words are not as wide as its layers.
    """

    predicts_words = True

    def __init__(
        self, spec: Spec, pretrained: str | None, dropout: Probability, architecture: dict[str, PositiveInt]
    ) -> None:
        super().__init__()
        spec.need("model=masked_bert", kind=("text",))
        self.base: Any = encoder(pretrained, spec, architecture, dropout, both_ways=True)
        self.base.pooler = None
        width, word_width = self.base.config.hidden_size, self.base.get_input_embeddings().embedding_dim
        self.num_words = spec.shape[0]
        if word_width != width:  # as in ALBERT
            raise ValueError(
                f"model=masked_bert predicts by its matrix of words, which must be as wide as its layers: {width}; it "
                f"is {word_width} here. Take another model.pretrained"
            )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.head.bias = nn.Parameter(torch.zeros(self.num_words))

    def forward(self, x: dict[str, Tensor], hidden: Tensor | None = None) -> Tensor:
        """x: `input_ids` and `attention_mask`, both (B, T); hidden: (B, T), which tokens to predict, None for all.

        Returns logits (N, V), or (B, T, V) for all.
        """
        states = self.base(**x).last_hidden_state  # (B, T, H)
        if hidden is not None:
            states = states[hidden]  # (N, H)
        words = self.base.get_input_embeddings().weight[: self.num_words]  # some models have more rows than words
        return self.head(states) @ words.T + self.head.bias
