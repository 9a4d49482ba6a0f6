"""How much each option of a sweep has to do with the accuracy: correlation and importance.

The same two as the parameter importance of Weights & Biases, which the study of
docs/mini_inception.md shows. An option of numbers is one row, of other values one for each value.
"""

import statistics

# Fewer trials say nothing.
FEWEST = 5


def influence(search, values, accuracies):
    """``[(name, correlation, importance), ...]``, the most important (or correlated) first.

    The correlation is Pearson's of the option with the accuracy, from -1 to 1; of a value that is
    no number, whether a trial has it. None where the accuracies are all equal. The importance is
    that of a random forest fitted to the accuracies (how much its splits by the option lower the
    squared error; all add up to 1), which also sees what is not linear; None where scikit-learn is
    not installed. Left out are options with one value alone, and those without numbers of which
    every trial has a value of its own.

    Args:
        search: ``{option: [value, ...]}``.
        values: ``{option: value}`` of every trial.
        accuracies: of the same trials.
    """
    columns = {}
    for key, choices in search.items():
        tried = [choice for choice in choices if any(v[key] == choice for v in values)]
        if len(tried) < 2:
            continue
        if is_numeric(choices):
            columns[key] = [float(v[key]) for v in values]
        elif len(tried) < len(values):
            columns |= {f"{key}={c}": [float(v[key] == c) for v in values] for c in tried}
    if not columns:
        return []
    importances = _importances(list(columns.values()), accuracies)
    rows = [
        (name, _correlation(column, accuracies), importance)
        for (name, column), importance in zip(columns.items(), importances, strict=True)
    ]
    return sorted(rows, key=lambda row: -abs(row[1] or 0 if row[2] is None else row[2]))


def is_numeric(choices):
    """Whether all are numbers, true and false not among them."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in choices)


def _correlation(xs, ys):
    try:
        return statistics.correlation(xs, ys)
    except statistics.StatisticsError:
        return None


def _importances(columns, accuracies):
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError:
        return [None] * len(columns)
    forest = RandomForestRegressor(random_state=0)
    forest.fit(list(zip(*columns, strict=True)), accuracies)
    return forest.feature_importances_.tolist()  # zeros where there is nothing to split
