"""slimtts: LLM text-to-speech models at half the depth, with proof that they still speak."""

__version__ = "0.1.0"
