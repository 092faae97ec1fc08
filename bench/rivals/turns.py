"""What rivals in Python share: taking turns with a program of the build tree, medians, peaks."""

import json
import math
import statistics
import subprocess
import time

from torch.profiler import ProfilerActivity, profile


class Program:
    """A process that answers each line with one; `first` is what it says unasked."""

    def __init__(self, command):
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.command[0]} ended")
        return line

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(sides, turns, warm_up=3):
    """Who -> what each turn gave. Turn by turn another one goes first; between them threads that
    spin in wait for work fall asleep."""
    names = list(sides)
    results = {name: [] for name in names}
    for turn in range(-warm_up, turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(0.01)
            result = sides[name]()
            if turn >= 0:
                results[name].append(result)
    return results


def interval_of_median(values):
    """A 95 % interval from order statistics (binomial, conservative)."""
    values, n = sorted(values), len(values)
    term, below, rank = 0.5**n, 0.0, 0
    while below + term <= 0.025:
        below += term
        rank += 1
        term *= (n - rank + 1) / rank
    rank = max(rank, 1)
    return values[rank - 1], values[n - rank]


def ratio_of(theirs, ours):
    """Median of theirs / ours over the turns, and its 95 % interval."""
    ratios = [their / our for their, our in zip(theirs, ours)]
    return [statistics.median(ratios), *interval_of_median(ratios)]


def record(program, work, who, times, **more):
    """As bench/report.hpp writes them; work: kernel, shape, dtype."""
    kernel, shape, dtype = work
    spread = statistics.stdev(times) if len(times) > 1 else math.nan
    return {
        "program": program,
        "kernel": kernel,
        "shape": shape,
        "dtype": dtype,
        "who": who,
        "seconds": statistics.median(times),
        "error": math.sqrt(math.pi / 2 / len(times)) * spread,
        "times": times,
        **more,
    }


def write(records, path):
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in records)


def peak_bytes(function):
    """The most bytes of tensors that a call holds of those it allocated, as droppeft::MemoryMeter
    counts; from the profiler's record of the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    changes, open_events = [], list(profiled.profiler.kineto_results.experimental_event_tree())
    while open_events:
        event = open_events.pop()
        open_events += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields))
    held, current, peak = {}, 0, 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        current -= held.pop(change.ptr, 0)
        if change.alloc_size > 0:
            held[change.ptr] = change.alloc_size
            current += change.alloc_size
        peak = max(peak, current)
    return peak
