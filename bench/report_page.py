"""The page that report.py writes: targets, verdicts and tables."""

import collections
import typing

OURS = "droppeft"


class Target(typing.NamedTuple):
    """What is asked of a kernel's rows."""

    percent: float | None = None  # of the limit, at least
    times: dict = {}  # rival -> how many times as long as ours it takes, at least, dropout on
    fewer_bytes: bool = False  # at the peak, than every rival


# By the beginning of a kernel's name.
TARGETS = {
    "dropout_add_norm_forward": Target(85, {"eager LibTorch": 20}),
    "dropout_add_norm_backward": Target(80),
    "dropout": Target(80),
    "gather": Target(80),
    "scatter": Target(80),
    "put": Target(80),
    "lora_linear": Target(100 / 1.05, {"peft's order": 1.4}),
    "lora_skinny": Target(70, {"at::mm": 1.5}),
    "weighted_mean": Target(85),
    "lora_step": Target(times={"transformers + peft": 1.25}, fewer_bytes=True),
}
SAVING = 95  # per cent of the ideal saving of dropped layers, at least
PEAK_WITHIN = 3  # per cent of the derived bytes
DISPATCH_BELOW = 1000  # nanoseconds
MISSING = "Rivals in Python: not run, their environment is missing."
WITH_PYTHON_RIVALS = ("dropout", "lora_linear", "lora_step")


def number(value, digits=3):
    """Rounded to so many digits, without an exponent; '-' for none."""
    if value is None:
        return "-"
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text


def scaled(record, key, factor):
    return number(factor * record[key] if record.get(key) is not None else None)


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def grouped(found, *keys):
    groups = collections.defaultdict(list)
    for record in found:
        groups[tuple(record[key] for key in keys)].append(record)
    return groups


def target_of(kernel):
    matching = [name for name in TARGETS if kernel.startswith(name)]
    return TARGETS[max(matching, key=len)] if matching else Target()


def what_is_asked(target):
    parts = [f"{least} x {name}" for name, least in target.times.items()]
    if target.percent:
        parts.insert(0, f"at least {number(target.percent)} % of the limit")
    if target.fewer_bytes:
        parts.append("fewer bytes at the peak")
    return f"Asked: {', '.join(parts)}." if parts else "Nothing is asked."


def ratio(record, ours):
    """How many times as long as ours it took; in turns where it was another process."""
    return record["ratio"][0] if "ratio" in record else record["seconds"] / ours["seconds"]


def verdict(ours, rivals):
    """'met', or what our row missed; '' where nothing is asked."""
    target = target_of(ours["kernel"])
    checks = []  # what was reached, and whether that is enough
    if target.percent and "percent" in ours:
        reached = ours["percent"]
        checks.append((f"{number(reached)} % of the limit", reached >= target.percent))
    for name, least in target.times.items():
        # Where the rival has several ways, its fastest counts.
        ratios = [ratio(each, ours) for each in rivals if each["who"].startswith(name)]
        if ratios and ", p 0" not in ours["shape"]:
            checks.append((f"{number(min(ratios))} of {least} x {name}", min(ratios) >= least))
    if target.fewer_bytes and rivals:
        share = ours["peak_bytes"] / min(each["peak_bytes"] for each in rivals)
        checks.append((f"peak {number(share)} x", share < 1))
    missed = [what for what, enough in checks if not enough]
    return ("missed: " + "; ".join(missed)) if missed else "met" if checks else ""


def times_ours(record, ours):
    text = number(ratio(record, ours))
    if "ratio" in record:
        text += " ({} to {})".format(*map(number, record["ratio"][1:]))
    return text


def kernel_row(record, ours, case):
    """One row of a case, of which `ours` is ours, if there is one."""
    name = [f"{record['shape']}, {record['dtype']}", record["who"]]
    if "failed" in record:
        return [*name, record["failed"], *[""] * 6]
    rate = number(1e-9 * record["bytes"] / record["seconds"]) if "bytes" in record else "-"
    against = ["", ""]
    if record is ours:
        rivals = [each for each in case if each is not ours and "failed" not in each]
        against[1] = verdict(ours, rivals)
    elif ours:
        against[0] = times_ours(record, ours)
    return [
        *name,
        f"{scaled(record, 'seconds', 1e3)} ± {scaled(record, 'error', 1e3)}",
        rate,
        scaled(record, "limit_seconds", 1e3),
        scaled(record, "percent", 1),
        scaled(record, "peak_bytes", 1e-6),
        *against,
    ]


def kernel_section(found, has_rivals):
    kernel, rows = found[0]["kernel"], []
    for case in grouped(found, "shape", "dtype").values():
        ours = next((each for each in case if each["who"] == OURS), None)
        ours_first = sorted(case, key=lambda each: not each["who"].startswith(OURS))
        rows += [kernel_row(record, ours, case) for record in ours_first]
    header = ["case", "who", "ms", "GB/s", "limit, ms", "% of the limit", "peak MB", "x ours"]
    parts = [what_is_asked(target_of(kernel)), table([*header, "verdict"], rows)]
    if not has_rivals and kernel.startswith(WITH_PYTHON_RIVALS):
        parts.append(MISSING)
    return "\n\n".join(parts)


def by_layers(found, describe):
    found = sorted(found, key=lambda each: -each["active"])
    return ", ".join(f"{each['active']}: {describe(each)}" for each in found)


def half_width(record):
    """Of the 95 % interval of its per cent."""
    return 1.96 * (record["percent_error"] or 0)


def saving_verdict(shares):
    least = min(shares, key=lambda each: each["percent"])
    if least["percent"] >= SAVING:
        return "met"
    in_noise = least["percent"] + half_width(least) >= SAVING
    return f"missed with {least['active']} active" + (", within the noise" if in_noise else "")


def step_skip_section(found, has_rivals):
    rows = []
    for (shape,), its in grouped([each for each in found if "active" in each], "shape").items():
        full = max(its, key=lambda each: each["active"])
        shares = [each for each in its if "percent" in each]
        cell = by_layers(shares, lambda each: f"{each['percent']:.0f} ± {half_width(each):.0f}")
        name = f"{shape}, all layers {scaled(full, 'seconds', 1e3)} ms"
        rows.append([name, cell, saving_verdict(shares) if shares else ""])
    rivals = []
    for each in found:
        if "failed" in each:
            rivals.append([each["shape"], each["who"], each["failed"], ""])
        elif "active" not in each:
            share = f"{each['percent']:.0f} ± {half_width(each):.0f}"
            peak = number(100 * each["peak_bytes"] / each["full_bytes"])
            rivals.append([each["shape"], each["who"], share, peak])
    header = ["shape", "who", "% of the ideal saving", "peak bytes, % of those without dropout"]
    return "\n\n".join(
        [
            (
                "A training step with k of the layers active. "
                f"Asked: at least {SAVING} % of the ideal saving for every k."
            ),
            table(["shape", "active: % of the ideal saving, 95 % interval", "verdict"], rows),
            "Layer dropout of others, which drops rows of the batch in each layer:",
            table(header, rivals) if has_rivals else MISSING,
        ]
    )


def peak_memory_section(found, _):
    def both(each):
        return f"{1e-6 * each['peak_bytes']:.2f} ({1e-6 * each['limit_bytes']:.2f})"

    rows = [[shape, by_layers(its, both)] for (shape,), its in grouped(found, "shape").items()]
    worst = 100 * max(abs(each["peak_bytes"] / each["limit_bytes"] - 1) for each in found)
    return "\n\n".join(
        [
            (
                "Bytes of tensors that a step holds at the most, with k of the layers active. "
                f"Asked: within {PEAK_WITHIN} % of those derived in docs/bench.md."
            ),
            table(["shape", "active: peak MB (derived)"], rows),
            f"Largest difference {worst:.2g} %: {'met' if worst <= PEAK_WITHIN else 'missed'}.",
        ]
    )


def dispatch_section(found, _):
    most = 1e9 * max(each["seconds"] for each in found)
    rows = [[each["who"], f"{1e9 * each['seconds']:.0f}"] for each in found]
    return "\n\n".join(
        [
            (
                "A wrapper around a layer, over the layer alone. "
                f"Asked: under {DISPATCH_BELOW} ns: {'met' if most < DISPATCH_BELOW else 'missed'}."
            ),
            table(["wrapper", "ns a call"], rows),
        ]
    )


SECTIONS = {
    "step_skip": step_skip_section,
    "peak_memory": peak_memory_section,
    "dispatch": dispatch_section,
}


def limit_rate(record):
    """GB/s or GFLOP/s."""
    return 1e-9 * record.get("bytes", record.get("flops")) / record["seconds"]


def machine_section(machines, limits, where):
    """`where`: processor and commit."""
    rows = []
    for program, machine in machines.items():
        its = [limits.get((program, what)) for what in ("FMA", "mm", "read", "triad")]
        rates = [number(limit_rate(record)) if record else "-" for record in its]
        rows.append([program, *rates, number(machine["load"])])
    facts = next(iter(machines.values()))
    has = {True: "yes", False: "no"}
    header = ["program", "FMA, GFLOP/s", "at::mm, GFLOP/s", "read, GB/s", "triad, GB/s", "load"]
    warnings = dict.fromkeys(each for machine in machines.values() for each in machine["warnings"])
    return "\n\n".join(
        [
            (
                f"{where}; {facts['processors']} processors, {facts['threads']} threads, "
                f"{facts['ISA']}, LibTorch {facts['LibTorch']}, oneDNN {has[facts['oneDNN']]}, "
                f"MKL {has[facts['MKL']]}."
            ),
            (
                "Limits, measured by each program among its own rows, medians; load: the machine's "
                "average over the minute before."
            ),
            table(header, rows),
            *[f"WARNING: {each}." for each in warnings],
        ]
    )


def page(machines, found, limits, where, has_rivals, pictures):
    """`pictures`: path -> caption."""
    parts = [
        "# Report of the kernels' benches",
        (
            "Written by `bench/report.py`; docs/bench.md says how. ms: median ± its standard "
            "error; GB/s: of the least bytes that must move; peak: of LibTorch's allocators in a "
            "call; x ours: time over droppeft's, taken in turns, with a 95 % interval, where it is "
            "another process."
        ),
        machine_section(machines, limits, where),
    ]
    parts += [f"![{caption}]({path})" for path, caption in pictures.items()]
    for (kernel,), its in grouped(found, "kernel").items():
        parts += [f"## {kernel}", SECTIONS.get(kernel, kernel_section)(its, has_rivals)]
    if not any(record["kernel"] == "lora_step" for record in found):
        parts += ["## lora_step", f"The whole step against transformers + peft. {MISSING}"]
    return "\n\n".join(parts) + "\n"
