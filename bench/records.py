"""Lines of JSON that the benches write (bench/report.hpp): to read them, and to run the benches."""

import json
import pathlib
import subprocess
import typing

BENCH = pathlib.Path(__file__).parent


class Row(typing.NamedTuple):
    kernel: str
    shape: str
    dtype: str
    who: str

    def __str__(self):
        return ", ".join(self)


def read(path):
    """The machine (empty for rivals) and the records of a file."""
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    machine = {}
    if lines and "machine" in lines[0]:
        machine = lines.pop(0)["machine"]
    return machine, lines


def row(record):
    return Row(*(record[part] for part in Row._fields))


def programs():
    """Names of the benches that write records."""
    kernels = sorted(path.stem for path in (BENCH / "kernels").glob("*.cpp"))
    return [*kernels, "layer_dropout", "weighted_mean"]


def run(command, log):
    """Whether the command succeeded; what it says goes to the file `log`."""
    with open(log, "w", encoding="utf-8") as file:
        try:
            process = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
        except FileNotFoundError as error:
            print(error, file=file)
            return False
        return process.returncode == 0
