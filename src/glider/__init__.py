"""glider: a pool of independently trained LoRA experts, routed per token as one model."""

__version__ = "0.1.0"
