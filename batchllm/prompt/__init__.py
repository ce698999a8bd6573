"""Prompts: Jinja2 templates over a record's fields, compiled once and rendered into chat messages.

`templates` owns what a template may do, `fields` which fields it needs, `chat` the messages that are made of
them, `given` what a record says itself, `images` its images. It never sees a provider, and reads no file but
images; `wire` makes a prompt, the pipeline renders it, and the first records are checked against its `fields`
before anything is called.
"""

from batchllm.prompt.chat import DEFAULT_PROMPT, ChatPrompt, Examples, GivenMessages, Messages, Prompt
from batchllm.prompt.fields import explain_missing, explain_no_images, missing_fields
from batchllm.prompt.given import model_in, params_in
from batchllm.prompt.templates import Condition

__all__ = [
    "DEFAULT_PROMPT",
    "ChatPrompt",
    "Condition",
    "Examples",
    "GivenMessages",
    "Messages",
    "Prompt",
    "explain_missing",
    "explain_no_images",
    "missing_fields",
    "model_in",
    "params_in",
]
