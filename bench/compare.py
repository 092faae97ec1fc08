"""Whether the kernels got faster or slower between two commits; the exit status is 1 when something
of ours got slower or holds more bytes.

Usage: compare.py BEFORE AFTER [--programs NAME ...] [--runs 9] [--least 3] [--keep FOLDER]
       compare.py --files BEFORE.jsonl ... --against AFTER.jsonl ... [--least 3]

BEFORE and AFTER are commits, or "." for the tree as it is. Each is built with the preset bench in
build/compare/COMMIT, and the programs of both take turns, --runs times, the one that goes first
changing. With --files, lines of JSON written by the benches are compared; the n-th of one side was
run beside the n-th of the other.

A row differs when its median differs by --least per cent, and does so by a t test on the logarithm
of after / before over the runs, at 5 per cent after Holm's correction over all rows. With a single
run of each, repetitions take the place of runs (Welch's test), which knows nothing of what differs
from run to run. Limits and rivals are rows too, which no commit changes: where they differ, the
machine did.
"""

import argparse
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import typing

import records
from holm import holm

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYERS = ("step_skip", "peak_memory", "dispatch")  # ours, whoever they are named by
LEVEL = 0.05
BYTES_ALLOWED = 1.01  # after / before
SLOWER, MORE = "SLOWER", "MORE BYTES"


class Difference(typing.NamedTuple):
    """after / before: logarithm and its standard error; whole degrees of freedom."""

    log: float
    error: float
    freedom: int

    def p_value(self):
        if self.error == 0:
            return float(self.log == 0)
        return two_tails(abs(self.log) / self.error, self.freedom)

    def interval(self):
        """95 %, in per cent."""
        low, high = 0.0, 1e4
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if two_tails(middle, self.freedom) > 0.05 else (low, middle)
        return [100 * math.expm1(self.log + sign * low * self.error) for sign in (-1, 1)]


def two_tails(t, freedom):
    """P(|T| > t) of Student's law: the integral of cos^(freedom - 1), by its recurrence."""

    def integral(n, angle):
        if n == 0:
            return angle
        if n == 1:
            return math.sin(angle)
        part = math.cos(angle) ** (n - 1) * math.sin(angle)
        return (part + (n - 1) * integral(n - 2, angle)) / n

    n = freedom - 1
    return max(0.0, 1 - integral(n, math.atan(t / math.sqrt(freedom))) / integral(n, math.pi / 2))


def paired(before, after):
    logs = [math.log(b / a) for a, b in zip(before, after)]
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return Difference(statistics.mean(logs), error, len(logs) - 1)


def welch(before, after):
    sides = [[math.log(time) for time in times] for times in (before, after)]
    parts = [statistics.variance(side) / len(side) for side in sides]
    freedom = sum(parts) ** 2 / sum(v * v / (len(s) - 1) for v, s in zip(parts, sides))
    log = statistics.mean(sides[1]) - statistics.mean(sides[0])
    return Difference(log, math.sqrt(sum(parts)), max(1, int(freedom)))


def read_side(paths):
    """Row -> its records, one of each file; rows that all files have."""
    runs = [{records.row(each): each for each in records.read(path)[1]} for path in paths]
    return {row: [run[row] for run in runs] for row in runs[0] if all(row in run for run in runs)}


def differences(before, after):
    """Row -> Difference, of rows that both sides have and that were timed more than once."""
    found = {}
    for row, olds in before.items():
        news = after.get(row, [])
        if len(news) > 1 and len(news) == len(olds):
            found[row] = paired(*([each["seconds"] for each in side] for side in (olds, news)))
        elif len(news) == 1 and len(olds) == 1 and min(len(e["times"]) for e in (*olds, *news)) > 1:
            found[row] = welch(olds[0]["times"], news[0]["times"])
    return found


def is_ours(row):
    return row.who.startswith("droppeft") or row.kernel in LAYERS


def bytes_verdict(olds, news):
    peaks = [max(each.get("peak_bytes", 0) for each in side) for side in (olds, news)]
    if peaks[1] > BYTES_ALLOWED * peaks[0]:
        return f"{MORE}: {peaks[0]:.0f} -> {peaks[1]:.0f}"
    if peaks[0] > BYTES_ALLOWED * peaks[1]:
        return f"fewer bytes: {peaks[0]:.0f} -> {peaks[1]:.0f}"
    return ""


def speed_verdict(difference, p, least):
    change = 100 * math.expm1(difference.log)
    verdict = "no difference"
    if p < LEVEL and abs(change) >= least:
        verdict = SLOWER if change > 0 else "faster"
    low, high = difference.interval()
    return verdict, f"{change:+7.1f} ({low:+6.1f} to {high:+6.1f}) {p:7.1e}"


def report(before, after, least):
    """Prints the verdicts; whether something of ours got worse."""
    found = differences(before, after)
    p_values = dict(zip(found, holm([difference.p_value() for difference in found.values()])))
    worse = moved = 0
    print(f"{'change %, 95 % interval':27} {'p':7}  verdict")
    for row in before:
        if row not in after:
            continue
        verdict, figures = "", ""
        if row in found:
            verdict, figures = speed_verdict(found[row], p_values[row], least)
        if is_ours(row):
            size = bytes_verdict(before[row], after[row])
            worse += verdict == SLOWER or size.startswith(MORE)
            print(f"{figures:35}  {verdict:24} {row}  {size}")
        else:
            moved += verdict in (SLOWER, "faster")
            print(f"{figures:35}  {verdict + ' (not ours)':24} {row}")
    for row in before.keys() ^ after.keys():
        print(f"only {'before' if row in before else 'after'}: {row}")
    if moved:
        print(f"{moved} rows differ that no commit changes: the machine did; run it again")
    print(f"rows of ours that got worse: {worse}")
    return worse > 0


def build(commit, programs):
    """The folder of a commit's programs, built if need be."""
    if commit == ".":
        tree = ROOT
    else:
        command = ["git", "-C", ROOT, "rev-parse", "--short", f"{commit}^{{commit}}"]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        tree = ROOT / "build/compare" / name
        if not tree.exists():
            add = ["git", "-C", ROOT, "worktree", "add", "--detach", tree, name]
            subprocess.run(add, check=True)
    environment = {"DROPPEFT_DOWNLOADS": str(ROOT / "build/downloads"), **os.environ}
    for command in (
        ["cmake", "--preset", "bench"],
        ["cmake", "--build", "--preset", "bench", "--target", *programs],
    ):
        subprocess.run(command, check=True, cwd=tree, env=environment, stdout=sys.stderr)
    return tree / "build/bench/bench"


def run_in_turns(arguments, folder):
    """Files of both sides, in the order of their runs."""
    sides = [build(commit, arguments.programs) for commit in (arguments.before, arguments.after)]
    files = [[], []]
    for run in range(arguments.runs):
        for side in (0, 1) if run % 2 else (1, 0):
            whole = folder / f"{'before' if side == 0 else 'after'}-{run}.jsonl"
            lines = []
            for program in arguments.programs:
                path = folder / f"{program}.jsonl"
                log = folder / f"{program}.log"
                if not records.run([sides[side] / program, "--json", path], log):
                    raise SystemExit(f"{sides[side] / program} failed:\n{log.read_text()[-2000:]}")
                lines += path.read_text().splitlines()[1:]
            whole.write_text("\n".join(lines) + "\n")
            files[side].append(whole)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return files


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("before", nargs="?")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--programs", nargs="+", default=records.programs())
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--least", type=float, default=3)
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--files", nargs="+", type=pathlib.Path)
    parser.add_argument("--against", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.files and arguments.against:
        files = arguments.files, arguments.against
        return report(*map(read_side, files), arguments.least)
    if arguments.after is None:
        parser.error("two commits, or --files and --against")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = run_in_turns(arguments, folder)
        return report(*map(read_side, files), arguments.least)


if __name__ == "__main__":
    raise SystemExit(main())
