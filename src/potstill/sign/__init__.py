"""`potstill sign` and `potstill verify`: the origin of an exported student in the formats that others read, and proof
that nothing changed since. No torch.

material.py   what a bill of material says: student, teacher, data, figures, files with their SHA-256
cyclonedx.py  as a CycloneDX 1.6 ML-BOM
spdx.py       as an SPDX 3.0.1 document of the AI and dataset profiles
seal.py       both, `SHA256SUMS`, and a signature by `model-signing`; and verifying them
"""
