"""Every line of the README's C++ is a line of a program that the tests build: README.md SOURCE..."""

import pathlib
import re
import sys

readme, *sources = (pathlib.Path(path).read_text(encoding="utf-8") for path in sys.argv[1:])
known = {" ".join(line.split()) for source in sources for line in source.splitlines()}
blocks = re.findall(r"^```cpp\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
strange = [
    line for block in blocks for line in block.splitlines() if " ".join(line.split()) not in known
]
if not blocks or strange:
    sys.exit("not in any program:\n" + "\n".join(strange or ["no block at all"]))
print(f"{len(blocks)} blocks")
