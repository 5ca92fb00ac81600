"""JSON objects of a checkpoint: read with the reason why they cannot be."""

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
      ValueError: the file is missing, or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent} has no {path.name}; is it a checkpoint directory?") from None
    except OSError as why:
        raise ValueError(f"{path} cannot be read: {why.strerror}") from why
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except ValueError as why:
        raise ValueError(f"{path} is not JSON: {why}") from why
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value
