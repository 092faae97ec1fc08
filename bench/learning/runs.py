"""Runs of federated_text: played once into a folder each, and read back."""
import json
import subprocess
import sys
import time


def metrics(folder):
    """The rounds played so far, a dictionary each."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def play(program, folder, options, where, enough=None):
    """Plays `options` into `folder`, unless that was done already, and returns the rounds. A run that
    was interrupted goes on from its checkpoint. `where` are options that change no number. Ends as soon
    as enough(rounds), if given, is true, without a summary then."""
    options = [str(option) for option in options]
    asked, finished = folder / "options.json", folder / "finished"
    if asked.exists() and json.loads(asked.read_text()) != options:
        sys.exit(f"{folder} was made with other options, {asked.read_text()}: move it away")
    if finished.exists() or (folder / "summary.json").exists():
        return metrics(folder)
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps(options))
    print(*folder.parts[-3:], flush=True)
    command = [program, *where, "--out", folder, "--resume", *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            time.sleep(0.5)
            if enough and enough(metrics(folder)):
                break
        else:
            if process.returncode:
                sys.exit(f"{folder}: the program ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
    finished.touch()
    return metrics(folder)


def smoothed(rounds, last, window, key="accuracy"):
    """The mean over the rounds up to `last` that ended within the last `window` simulated seconds: runs
    whose rounds differ in length lag alike."""
    begin = rounds[last]["sim_seconds"] - window
    values = [line[key] for line in rounds[:last + 1] if line["sim_seconds"] > begin]
    return sum(values) / len(values)


def time_to(rounds, target, window):
    """Simulated seconds until that mean is at the target, `window` seconds having passed, or None."""
    for i, line in enumerate(rounds):
        if line["sim_seconds"] >= window and smoothed(rounds, i, window) >= target:
            return line["sim_seconds"]
    return None
