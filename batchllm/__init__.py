"""batchllm: a file of records and an LLM endpoint in, every record answered or accounted for out."""

__version__ = "0.1.0"
