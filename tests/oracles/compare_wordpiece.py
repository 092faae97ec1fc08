"""Writes the ids that the Python package `tokenizers` gives for all texts of a folder of CSV files.

Usage: python compare_wordpiece.py DATA_DIR MODEL_DIR OUTPUT.jsonl

DATA_DIR is searched for *.csv with a column `text`; MODEL_DIR holds tokenizer.json. The output has
a line {"text": ..., "ids": [...]} for each text, without truncation. Let the environment variable
DROPPEFT_WORDPIECE_TEXTS name it, and tests/io/wordpiece_test.cpp compares. Run with tokenizers
0.23.3.
"""

import csv
import json
import pathlib
import sys

from tokenizers import Tokenizer

data, model, output = sys.argv[1:]
tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
tokenizer.no_padding()
tokenizer.no_truncation()
count = 0
with open(output, "w", encoding="utf-8") as out:
    for path in sorted(pathlib.Path(data).rglob("*.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                ids = tokenizer.encode(row["text"]).ids
                out.write(json.dumps({"text": row["text"], "ids": ids}) + "\n")
                count += 1
print(f"{count} texts")
