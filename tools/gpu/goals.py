"""The goals, and whether what was measured reaches them."""

import math

from evonorm_plugins.benchmarks import LAYERS

COPY_SHARE = 0.60  # of the bandwidth of a copy, forward and backward
COPY_BYTES = 64 * 2**20  # of x, from which on that is asked
COMPILED = 0.80  # of the time of timm's layer by torch.compile
HOST = {"S": 1.5, "B": 2.0, "affine": 1.0}  # of the host time of BN+ReLU
WHOLE = "fwd+bwd"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CHECKS = (
    *("accuracy", "CUDA graph", "streams", "second device", "AMP with GradScaler"),
    *("2^31 elements", "compute-sanitizer"),
)


def judge(records, dry_run):
    """A row for each goal: what was asked, the worst that was found and where, and the verdict.

    The verdict is PASS, FAIL, "not measured", or "dry run" for times of a dry run.

    Args:
        records: by kind, as the sections write them.
    """
    checks, skips = (_by_name(records.get(kind, [])) for kind in ("check", "skipped"))
    names = dict.fromkeys((*CHECKS, *checks))
    goals = [_judge_checks(name, checks.get(name, []), skips.get(name, [])) for name in names]
    goals += [
        _judge(*goal, dry_run)
        for goal in (
            *_layer_goals(records.get("layer", [])),
            *_host_goals(records.get("host", [])),
            _model_goal(records.get("model", [])),
        )
    ]
    return goals


def _by_name(records):
    """Records by what stands before the colon of their names."""
    found = {}
    for record in records:
        found.setdefault(record["name"].partition(":")[0], []).append(record)
    return found


def _judge_checks(name, checks, skips):
    failed = [check for check in checks if check["verdict"] == "FAIL"]
    where = f"{failed[0]['name']}: {failed[0]['detail']}" if failed else ""
    found = f"{len(checks) - len(failed)} of {len(checks)}" if checks else ""
    if skips:
        found += f"{', ' if found else ''}{len(skips)} skipped"
    verdict = "FAIL" if failed else "PASS" if checks else "not measured"
    return {"goal": name, "asked": "all", "found": found, "where": where, "verdict": verdict}


def _judge(goal, limit, values, at_least, dry_run):
    """Of ``(value, where)``, the worst against the limit."""
    asked = f"{'at least' if at_least else 'at most'} {limit:.2f}"
    if not values:
        return {
            "goal": goal, "asked": asked, "found": "", "where": "", "verdict": "not measured"
        }  # fmt: skip
    value, where = (min if at_least else max)(values)
    missed = sum(v < limit if at_least else v > limit for v, _ in values)
    count = f", missed in {missed} of {len(values)}" if missed else f" of {len(values)}"
    verdict = "FAIL" if missed or math.isnan(value) else "PASS"
    return {
        "goal": goal,
        "asked": asked,
        "found": f"{value:.2f}{count}",
        "where": where,
        "verdict": "dry run" if dry_run else verdict,
    }


def _layer_goals(rows):
    times, sizes = {}, {}
    for row in rows:
        if row["phase"] == WHOLE:
            case = f"{row['shape']} {row['dtype']} {row['layout']}"
            times.setdefault(case, {})[row["competitor"], row["impl"]] = row["median_ms"]
            sizes[case] = math.prod(map(int, row["shape"].split("x"))) * BYTES[row["dtype"]]
    share, over_bn, over_compiled = [], [], []
    for case, of in times.items():
        for name in LAYERS:
            time = of.get((name, "auto"))
            if time is None:
                continue
            where = f"{name} {case}"
            if sizes[case] >= COPY_BYTES:
                share.append((of["copy", "existing"] / time, where))
            if ("BN+ReLU", "torch.nn") in of:
                over_bn.append((time / of["BN+ReLU", "torch.nn"], where))
            if (name, "timm compiled") in of:
                over_compiled.append((time / of[name, "timm compiled"], where))
    return [
        (f"share of copy bandwidth, {WHOLE}, 64 MiB and more", COPY_SHARE, share, True),
        (f"time over that of BN+ReLU, {WHOLE}", 1.0, over_bn, False),
        (f"time over that of compiled timm, {WHOLE}", COMPILED, over_compiled, False),
    ]


def _host_goals(rows):
    found = {family: [] for family in HOST}
    for row in rows:
        name = row["competitor"]
        family = name.removeprefix("EvoNorm")[:1] if name in LAYERS else name
        if family in found:
            where = f"{name} {row['shape']} {row['layout']}"
            found[family].append((row[f"{WHOLE}_of_BN+ReLU"], where))
    return [
        (f"host time over that of BN+ReLU, {WHOLE}, {family}", HOST[family], values, False)
        for family, values in found.items()
    ]


def _model_goal(rows):
    times = {}
    for row in rows:
        case = f"{row['model']} {row['images']}x3x{row['size']} {row['dtype']}"
        times.setdefault(case, {})[row["norm"]] = row["median_ms"]
    values = [
        (of[norm] / of["BN-ReLU"], f"{norm} in {case}")
        for case, of in times.items()
        for norm in of
        if norm.startswith("EvoNorm") and "BN-ReLU" in of
    ]
    return "time of a training step over that with BN", 1.0, values, False
