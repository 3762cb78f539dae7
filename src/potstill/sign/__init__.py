"""`potstill sign` and `potstill verify`: bills of material of an exported student in standard formats, and a proof that
no file has changed. No torch.

material.py   the content of a bill of material: student, teacher, data, figures, files with their SHA-256
cyclonedx.py  as a CycloneDX 1.6 ML-BOM
spdx.py       as an SPDX 3.0.1 document of the AI and dataset profiles
seal.py       both, `SHA256SUMS`, and a signature by `model-signing`; and verifying them
"""
