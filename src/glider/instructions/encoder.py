"""The forward pass of a small BERT without what a single short text does not need.

sentence-transformers takes texts through sorting, batching, padding, masks and the modules of transformers; for one
query that is a fifth to a third of the time. Here: one product for queries, keys and values, texts of a batch one after
the other without padding, and nothing that is not in the model. Used where it gives the vectors of the model itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from glider.shapes import Float, Tensor

BATCH = 32  # texts at a time
_TOLERANCE = 1e-5  # of a value of a unit vector
_MODULES = ["Transformer", "Pooling", "Normalize"]
_PROBES = ("Decide which expert answers this question.", "No.", "A text of some words. " * 20)


@dataclass(frozen=True)
class Affine:
    """y = W x + b."""

    weight: Float[Tensor, "O D"]
    bias: Float[Tensor, " O"]

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N O"]:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """Layer normalisation."""

    weight: Float[Tensor, " D"]
    bias: Float[Tensor, " D"]
    epsilon: float

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class Layer:
    """One layer: attention over each text, then two products; normalised after each addition."""

    inputs: Affine  # queries, keys and values
    outputs: Affine
    attended: Norm
    up: Affine
    down: Affine
    transformed: Norm

    def __call__(self, x: Float[Tensor, "N D"], lengths: list[int], heads: int) -> Float[Tensor, "N D"]:
        parts = [attention(text, heads) for text in self.inputs(x).split(lengths)]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        x = self.attended(self.outputs(mixed).add_(x))
        return self.transformed(self.down(functional.gelu(self.up(x))).add_(x))


def attention(text: Float[Tensor, "L P"], heads: int) -> Float[Tensor, "L D"]:
    """Of one text's queries, keys and values (P = 3 D)."""
    query, key, value = text.view(1, len(text), 3, heads, -1).permute(2, 0, 3, 1, 4)  # (1, heads, L, D / heads)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(len(text), -1)


@dataclass(frozen=True)
class Encoder:
    """A BERT whose token vectors are averaged and brought to unit length."""

    tokenizer: Any
    longest: int  # tokens of a text
    words: Float[Tensor, "V D"]
    positions: Float[Tensor, "M D"]  # with the vector of the one kind of token
    embedded: Norm
    layers: tuple[Layer, ...]
    heads: int

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Embed texts, float32, unit length."""
        if not texts:
            return torch.empty(0, self.words.shape[1])
        tokens = self.tokenizer(
            [text.strip() for text in texts],
            truncation=True,
            max_length=self.longest,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        parts = [self.of_tokens(tokens[i : i + BATCH]) for i in range(0, len(tokens), BATCH)]
        return torch.cat(parts)

    def of_tokens(self, texts: list[list[int]]) -> Float[Tensor, "B D"]:
        """Vectors of texts that are tokens, all of one batch."""
        lengths = [len(text) for text in texts]
        ids = torch.tensor([token for text in texts for token in text])
        places = torch.tensor([place for length in lengths for place in range(length)])
        x = self.embedded(self.words[ids].add_(self.positions[places]))  # (N, D)
        for layer in self.layers:
            x = layer(x, lengths, self.heads)
        means = torch.stack([text.mean(dim=0) for text in x.split(lengths)])
        return functional.normalize(means, dim=1)


def encoder_of(model: Any) -> Encoder | None:
    """The same computation as a SentenceTransformer, if it is one of these and gives the same vectors; else None."""
    if not _is_plain(model):
        return None
    encoder = _encoder(model)
    expected = model.encode(list(_PROBES), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    vectors = encoder(_PROBES)
    same = vectors.shape == expected.shape and bool((vectors - expected.cpu()).abs().max() <= _TOLERANCE)
    return encoder if same else None


def _is_plain(model: Any) -> bool:
    """BERT, in float32, on the CPU, with the mean of its tokens, and no prompt of its own."""
    from transformers import BertModel

    modules = list(model)
    if [type(module).__name__ for module in modules] not in (_MODULES[:2], _MODULES):
        return False
    bert = getattr(modules[0], "auto_model", None)
    if not isinstance(bert, BertModel) or model.default_prompt_name is not None or model.max_seq_length is None:
        return False
    weights = list(bert.parameters())
    plain = all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights)
    return plain and bert.config.hidden_act == "gelu"


def _encoder(model: Any) -> Encoder:
    bert = model[0].auto_model
    table, layers = bert.embeddings, []
    for layer in bert.encoder.layer:
        inner = layer.attention.self
        parts = [inner.query, inner.key, inner.value]
        inputs = Affine(torch.cat([p.weight.detach() for p in parts]), torch.cat([p.bias.detach() for p in parts]))
        layers.append(
            Layer(
                inputs,
                _affine(layer.attention.output.dense),
                _norm(layer.attention.output.LayerNorm),
                _affine(layer.intermediate.dense),
                _affine(layer.output.dense),
                _norm(layer.output.LayerNorm),
            )
        )
    positions = (table.position_embeddings.weight + table.token_type_embeddings.weight[0]).detach()
    words = table.word_embeddings.weight.detach()
    heads = bert.config.num_attention_heads
    return Encoder(
        model.tokenizer, model.max_seq_length, words, positions, _norm(table.LayerNorm), tuple(layers), heads
    )


def _affine(module: torch.nn.Linear) -> Affine:
    return Affine(module.weight.detach(), module.bias.detach())


def _norm(module: torch.nn.LayerNorm) -> Norm:
    return Norm(module.weight.detach(), module.bias.detach(), module.eps)
