"""Runs the ```python blocks of a page, top to bottom, as one program: `snippets.py docs/python.md`."""

import re
import sys
from pathlib import Path

page = Path(sys.argv[1])
text = page.read_text()
names = {"__name__": "__main__"}
blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S))
if not blocks:
    sys.exit(f"snippets: wanted ```python blocks in {page}, found none")
for block in blocks:
    line = text[: block.start(1)].count("\n")
    exec(compile("\n" * line + block[1], str(page), "exec"), names)
print(f"{page}: {len(blocks)} snippets ran")
