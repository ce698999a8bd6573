"""Structured answers: find the JSON in a text, check it against a JSON Schema, say what is wrong.

The only room that knows jsonschema. It asks nobody and fetches nothing; `wire` loads the schema,
`layers/structured` judges answers with it.
"""

from batchllm.schema.finding import find_json
from batchllm.schema.strict import StrictForm, strict_form
from batchllm.schema.validating import Schema

__all__ = ["Schema", "StrictForm", "find_json", "strict_form"]
