"""What a request will use in tokens, before it is sent: pure."""

from __future__ import annotations


class Estimate:
    """What a request will use in tokens, learnt from the usage of those before it.

    Starts at 4 bytes a token (the rule of thumb of OpenAI's documents) and 256 tokens an answer.
    """

    def __init__(self) -> None:
        self._tokens_per_byte = 0.25
        self._output = 256.0

    def parts(self, size: int, most: int | None) -> tuple[float, float]:
        """Input and output tokens of a request with `size` bytes of text; `most` is its max_tokens."""
        return size * self._tokens_per_byte, most if most is not None else self._output

    def learn(self, size: int, input_tokens: int, output_tokens: int) -> None:
        """Take in the usage of a request that was answered."""
        if size and input_tokens:
            self._tokens_per_byte += 0.05 * (input_tokens / size - self._tokens_per_byte)
        if output_tokens:
            self._output += 0.05 * (output_tokens - self._output)
