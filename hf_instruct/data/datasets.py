"""Rows as the `Dataset`s that users get back."""

import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from datasets import Dataset, Features


def build_dataset(rows: Sequence[Any], row_type: type) -> "Dataset":
    """Return rows of one type as a `Dataset` with a column for each of the type's fields."""
    from datasets import Dataset

    features = _build_features(row_type)
    return Dataset.from_dict({name: [getattr(row, name) for row in rows] for name in features}, features=features)


def _build_features(row_type: type) -> "Features":
    """Return the type of each column; without them, a column that is null on every row would have none."""
    from datasets import Features, List, Value

    names = {str: "string", bool: "bool", int: "int64", float: "float64"}

    def convert(hint: Any) -> Any:
        if get_origin(hint) in (types.UnionType, typing.Union):
            return convert(next(part for part in get_args(hint) if part is not type(None)))
        return List(convert(get_args(hint)[0])) if get_origin(hint) is list else Value(names[hint])

    return Features({name: convert(hint) for name, hint in get_type_hints(row_type).items()})
