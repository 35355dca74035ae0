"""The sentence encoder in torch: transformers' BERT, mean pooling, unit length. Twin of jax_encoder.py."""

import torch
from data import MODEL
from transformers import BertModel


def load(folder=MODEL, dtype=torch.float32):
    """Return the model of the package, without dropout (its pooler is not used for embeddings)."""
    model = BertModel.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    return model.eval()


def encode(model, ids, mask):
    """Return embeddings (sentences, 384) of unit length."""
    ids, mask = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weight = mask[..., None].to(hidden.dtype)
    mean = (hidden * weight).sum(1) / weight.sum(1)
    return mean / mean.norm(dim=1, keepdim=True)
