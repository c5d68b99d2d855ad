"""Which columns of a table hold the pictures and the labels, and the labels as class ids and class names.

May import: nothing of ours. Next: `cache.py` decodes the column of pictures.
"""

import numpy as np

_STRINGS = {"string", "large_string", "string_view"}
_LABEL_DTYPES = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", *_STRINGS}


def find_columns(table, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """The given columns, or else those of the right feature type; of several, one whose name is customary on the Hub.

    Raises:
        ValueError: there is no such column.
    """
    from datasets import ClassLabel, Image, Value

    found = []
    for kind, given, type_, usual in (
        ("image", image_column, Image, ("image", "img")),
        ("label", label_column, ClassLabel, ("label", "labels", "fine_label")),
    ):
        columns = {name: feature for name, feature in table.features.items() if isinstance(feature, type_)}
        if kind == "label":  # numbers or strings without class names are labels only if the column has a usual name
            columns |= {n: f for n, f in table.features.items() if n in usual and getattr(f, "dtype", "") in _LABEL_DTYPES}
        column = given or next((name for name in usual if name in columns), next(iter(columns), None))
        if column is None or column not in (columns if kind == "image" else table.features):
            kinds = {n: f.dtype if isinstance(f, Value) else type(f).__name__ for n, f in table.features.items()}
            there = ", ".join(f"{name} ({type_})" for name, type_ in kinds.items())
            raise ValueError(
                f"{kind}_column: expected {'a column of ' + kind + 's' if given is None else repr(given)}, got the columns"
                f" {there}; name it with --{kind}_column, or add one to the data set."
            )
        found.append(column)
    return found[0], found[1]


def class_labels(table, column: str) -> tuple[np.ndarray, list[str]]:
    """Labels (N,) int64 and the class names.

    Raises:
        ValueError: a row without a label, a label outside the class names, or a column of another type.
    """
    feature = table.features[column]
    values = table.data.column(column).to_pandas().to_numpy()
    missing = np.flatnonzero(table.data.column(column).is_null().to_numpy())
    if len(missing):
        raise ValueError(f"{column}: expected a label in each row, got none in row {missing[0]}; label or remove the row.")
    names = getattr(feature, "names", None)
    if getattr(feature, "dtype", "") in _STRINGS:
        names = sorted(set(values), key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
        values = np.array([names.index(value) for value in values])
    if np.asarray(values).dtype.kind not in "iub":
        raise ValueError(f"{column}: expected whole numbers or class names, got {feature}; name another --label_column.")
    labels = np.asarray(values).astype(np.int64)
    if names is None:  # numbers without class names: each one that occurs is a class
        if labels.min(initial=0) < 0:
            row = int(labels.argmin())
            raise ValueError(f"{column}: expected whole numbers from 0, or class names, got {labels[row]} in row {row}.")
        found, labels = np.unique(labels, return_inverse=True)
        names = [str(label) for label in found]
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        row = outside[0]
        raise ValueError(
            f"{column}: expected labels from 0 to {len(names) - 1} ({', '.join(names)}), got {labels[row]} in row {row};"
            " correct it or remove the row."
        )
    return labels, list(names)
