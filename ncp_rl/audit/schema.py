"""The JSON Schema of audit.json, composed from the questions' own. `python -m ncp_rl.audit.schema` prints it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ncp_rl.audit.audit import FORMAT_VERSION, Questions, on_recordings, on_runs
from ncp_rl.audit.questions import QUESTIONS

_NAMES = {"type": "array", "items": {"type": "string"}}
_COUNT = {"type": "integer"}
_VERDICT = {
    "type": "object",
    "properties": {
        "check": {"type": "string"},
        "passed": {"type": "boolean"},
        "sentence": {"type": "string"},
        "figures": {"type": "object", "additionalProperties": {"type": "number"}},
    },
    "required": ["check", "passed", "sentence", "figures"],
    "additionalProperties": False,
}
_VERDICTS = {"type": "array", "items": {"$ref": "#/$defs/verdict"}}


def audit_schema(questions: Questions = QUESTIONS) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what `Audit.to_dict` gives where these questions were asked."""
    properties = {
        "format_version": {"const": FORMAT_VERSION},
        "passed": {"type": "boolean", "description": "Whether every verdict passed."},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        "subjects": {"type": "array", "items": {"$ref": "#/$defs/subject"}},
    }
    for question in on_runs(questions):
        properties |= {key: _where_asked(schema) for key, schema in question.schema.items()}
        properties[f"{question.name}_verdicts"] = _VERDICTS
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"audit.json of ncp_rl, format version {FORMAT_VERSION}",
        "description": "What ncp-rl audit writes. A change that breaks readers raises format_version.",
        **_closed(properties),
        "$defs": {"verdict": _VERDICT, "subject": _closed(_subject(questions))},
    }


def _subject(questions: Questions) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "name": {"type": "string"},
        "n_episodes": _COUNT | {"minimum": 1},
        "n_steps": _COUNT | {"minimum": 1},
        "n_sampled_episodes": _COUNT
        | {"minimum": 1, "description": "Episodes that statistics are of; fewer than n_episodes where they are many."},
        "circuit": _closed(
            {
                "cell": {"type": "string", "description": "Kind of the neurons: ltc or cfc."},
                "neurons": _NAMES,
                "sensory": _NAMES,
                "actions": _NAMES,
                "n_synapses": {"type": "integer"},
            }
        ),
        "manifest": {"type": "object", "description": "The manifest of the recording."},
        "verdicts": _VERDICTS,
        "skipped": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Questions that were not asked, and the reasons.",
        },
    }
    for question in on_recordings(questions):
        properties |= {key: _where_asked(schema) for key, schema in question.schema.items()}
    return properties


def _where_asked(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema, which allows null where the question may be skipped and it has no other default."""
    return schema if "default" in schema else {"oneOf": [{"type": "null"}, schema]}


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with exactly these keys."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


if __name__ == "__main__":
    print(json.dumps(audit_schema(), indent=2))
