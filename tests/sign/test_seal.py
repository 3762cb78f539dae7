"""A sealed student says where it comes from, verifies anywhere, and fails after one changed byte in any file."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spdx_python_model import v3_0_1 as spdx

from potstill.artifacts import write_artifact
from potstill.errors import MissingExtra, RunError, UserError
from potstill.recipe import dump_recipe, load_recipe, parse_recipe
from potstill.sign import seal as module
from potstill.sign.seal import BILLS, SIGNATURE, SUMS, seal, verify
from tiny_models import make_tiny_causal_lm

ALL = (*BILLS, SUMS, SIGNATURE, "model.safetensors", "config.json", "README.md", "manifest.json", "templates/x.jinja")


def make_keys(folder: Path) -> tuple[Path, Path]:
    private, public = folder / "key.pem", folder / "pub.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def make_run(run: Path) -> Path:
    """A run with an export, as the stages leave it; gives the export's folder."""
    run.mkdir(parents=True)
    recipe = parse_recipe(
        {
            "name": "small",
            "teacher": {"kind": "local", "model": str(run / "secret" / "acme-teacher")},
            "student": {"kind": "from_teacher"},
            "data": {"kind": "jsonl", "path": str(run / "secret" / "prompts.jsonl"), "licence": "cc-by-4.0"},
            "train": {},
            "export": [{"kind": "huggingface"}],
        },
        base=run,
    )
    make_tiny_causal_lm(run / "secret" / "acme-teacher", layers=1)
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    with write_artifact(run, "train", "k" * 64, settings={}, inputs={}, seed=0) as work:
        (work.path / "model").mkdir()
        (work.path / "model" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        work.count("records", 82)
        work.facts["arguments"] = {"learning_rate": 5e-4}
        work.warn("two records were cut")
    with write_artifact(run, "export.huggingface", "k" * 64, settings={}, inputs={}, seed=0) as work:
        (work.path / "model.safetensors").write_bytes(bytes(range(200)))
        (work.path / "config.json").write_text("{}")
        (work.path / "README.md").write_text("# small\n")
        (work.path / "templates").mkdir()
        (work.path / "templates" / "x.jinja").write_text("{{ x }}")
    return run / "export.huggingface"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sealed folder, and the public key."""
    folder = tmp_path_factory.mktemp("sealed")
    private, public = make_keys(folder)
    export = make_run(folder / "run")
    seal(export, private)
    return export, public


def test_the_bills_say_what_the_gate_answered_and_what_was_overridden(tmp_path: Path) -> None:
    export = make_run(tmp_path / "run")
    file, why = tmp_path / "run" / "recipe.yaml", "A written agreement of 2026 allows it."
    overrides = json.dumps([{"source": "openai-api", "reason": why, "by": "A", "on": "2026-11-27"}])
    file.write_text(dump_recipe(load_recipe(file, [f"policy.overrides={overrides}"])))
    seal(export, make_keys(tmp_path)[0])
    student = json.loads((export / "bom.cdx.json").read_text())["metadata"]["component"]
    said = {entry["name"]: entry["value"] for entry in student["properties"]}
    answers = [value for name, value in said.items() if name.startswith("potstill:policy:answer:")]
    assert any("acme-teacher" in answer for answer in answers) and any("Attribution 4.0" in a for a in answers)
    assert (
        said["potstill:policy:override:1"] == "openai-api, by A on 2026-11-27: A written agreement of 2026 allows it."
    )
    assert "Overridden: openai-api, by A" in next(
        (export / name).read_text() for name in BILLS if name != "bom.cdx.json"
    )


def test_a_sealed_student_verifies_in_another_folder(sealed: tuple[Path, Path], tmp_path: Path) -> None:
    export, public = sealed
    there = shutil.copytree(export, tmp_path / "elsewhere")
    assert verify(there, public) == [f"7 files are as {SUMS} says", f"the signature fits {public}"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(ALL), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_changed_byte_in_any_file_fails(
    sealed: tuple[Path, Path], tmp_path: Path, name: str, place: int, bit: int
) -> None:
    export, public = sealed
    there = shutil.copytree(export, tmp_path / "there", dirs_exist_ok=True)
    data = bytearray((there / name).read_bytes())
    data[place % len(data)] ^= 1 << bit
    (there / name).write_bytes(bytes(data))
    with pytest.raises(RunError):
        verify(there, public)


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "unsigned"])
def test_files_that_come_and_go_fail(sealed: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    export, public = sealed
    there = shutil.copytree(export, tmp_path / "there")
    match change:
        case "added":
            (there / "pickle.bin").write_bytes(b"x")
        case "removed":
            (there / "README.md").unlink()
        case "renamed":
            (there / "README.md").rename(there / "readme.md")
        case "unsigned":
            (there / SIGNATURE).unlink()
    with pytest.raises(RunError):
        verify(there, public)


def test_new_sums_over_a_changed_file_do_not_fit_the_signature(sealed: tuple[Path, Path], tmp_path: Path) -> None:
    """Anybody can write sums; only the signer can sign."""
    export, public = sealed
    there = shutil.copytree(export, tmp_path / "there")
    (there / "README.md").write_text("# another\n")
    sums = module.digests_of(there, frozenset({SUMS, SIGNATURE}))
    (there / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    assert "was not verified" in verify(there, None)[1]
    with pytest.raises(RunError, match="the signature does not fit"):
        verify(there, public)


def test_another_signers_key_does_not_fit(sealed: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the signature does not fit"):
        verify(sealed[0], make_keys(tmp_path)[1])


def test_the_sums_are_those_of_sha256sum(sealed: tuple[Path, Path]) -> None:
    done = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=sealed[0], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_bill_of_material_names_teacher_data_licence_and_files(sealed: tuple[Path, Path]) -> None:
    """It is validated against the schema when it is written."""
    bill = json.loads((sealed[0] / "bom.cdx.json").read_text())
    student = bill["metadata"]["component"]
    assert bill["specVersion"] == "1.6" and student["type"] == "machine-learning-model"
    assert student["pedigree"]["ancestors"][0]["name"] == "acme-teacher"
    assert student["modelCard"]["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    assert "two records were cut." in student["modelCard"]["considerations"]["technicalLimitations"]
    named = {component["name"]: component for component in bill["components"]}
    assert named["prompts.jsonl"]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert named["model.safetensors"]["hashes"][0]["alg"] == "SHA-256"


@pytest.mark.parametrize(
    ("stated", "cyclonedx", "spdx_expression"),
    [
        ("mit", {"license": {"id": "MIT"}}, "MIT"),
        ("MIT AND CC0-1.0", {"expression": "MIT AND CC0-1.0"}, "MIT AND CC0-1.0"),
        ("llama3.1", {"license": {"name": "llama3.1"}}, "LicenseRef-"),
        ("own", {"license": {"name": "own"}}, "LicenseRef-"),
        ({"id": "mit", "attested_by": "A", "on": "2026-11-27", "why": "their page"}, {"license": {"id": "MIT"}}, "MIT"),
    ],
)
def test_a_licence_stands_by_its_identifier_and_any_other_by_its_name(
    tmp_path: Path, stated: Any, cyclonedx: Any, spdx_expression: str
) -> None:
    export = make_run(tmp_path / "run")
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(dump_recipe(load_recipe(file, [f"data.licence={json.dumps(stated)}"])))
    seal(export, None)
    bill = json.loads((export / "bom.cdx.json").read_text())
    [data] = [component for component in bill["components"] if component["bom-ref"] == "data"]
    assert data["licenses"] == [cyclonedx]
    found = spdx.SHACLObjectSet()
    spdx.JSONLDDeserializer().read(io.BytesIO((export / "bom.spdx.json").read_bytes()), found)
    [licence] = found.foreach_type(spdx.simplelicensing_LicenseExpression)
    assert licence.simplelicensing_licenseExpression.startswith(spdx_expression)


def test_the_spdx_document_is_read_back_as_a_trained_model(sealed: tuple[Path, Path]) -> None:
    found = spdx.SHACLObjectSet()
    spdx.JSONLDDeserializer().read(io.BytesIO((sealed[0] / "bom.spdx.json").read_bytes()), found)
    [data] = found.foreach_type(spdx.dataset_DatasetPackage)
    assert data.name == "prompts.jsonl" and data.dataset_datasetSize == 82
    kinds = {str(one.relationshipType).rpartition("/")[2] for one in found.foreach_type(spdx.Relationship)}
    assert {"trainedOn", "descendantOf", "contains", "hasDeclaredLicense"} <= kinds


def test_no_bill_names_a_folder_of_this_machine(sealed: tuple[Path, Path]) -> None:
    for name in BILLS:
        text = (sealed[0] / name).read_text()
        assert "secret" not in text and str(sealed[0].parent) not in text


def test_a_folder_outside_a_run_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(RunError, match="not an export in a run's folder"):
        seal(tmp_path / "x", None)


def test_a_folder_that_was_not_sealed_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not sealed"):
        verify(tmp_path, None)


def test_a_key_that_is_none_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(UserError, match="the key cannot be used"):
        seal(make_run(tmp_path / "run"), tmp_path / "key.pem")


def test_without_the_packages_the_error_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"potstill\[sign\]"):
        module.need_packages()


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("change", ["link to a folder", "link to nothing", "pipe"])
def test_what_is_no_file_was_added_too(sealed: tuple[Path, Path], tmp_path: Path, change: str, key: bool) -> None:
    """Code in a folder that is linked in is as good as added."""
    export, public = sealed
    there = shutil.copytree(export, tmp_path / "there")
    match change:
        case "link to a folder":
            (tmp_path / "code").mkdir()
            (there / "code").symlink_to(tmp_path / "code")
        case "link to nothing":
            (there / "code").symlink_to(tmp_path / "nowhere")
        case "pipe":
            os.mkfifo(there / "code")
    with pytest.raises(RunError, match="was added"):
        verify(there, public if key else None)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff.bin", b"a\rb"])
def test_a_name_that_the_sums_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, name: bytes) -> None:
    export = make_run(tmp_path / "run")
    Path(os.fsdecode(os.fsencode(str(export)) + b"/" + name)).write_text("x")
    with pytest.raises(RunError, match="has a name that no list of sums can hold"):
        seal(export, None)
    assert not (export / SUMS).exists()


def test_a_link_is_not_sealed(tmp_path: Path) -> None:
    export = make_run(tmp_path / "run")
    (export / "more.md").symlink_to(export / "README.md")
    with pytest.raises(RunError, match="is a link"):
        seal(export, None)


def test_sealing_again_without_a_key_leaves_no_signature_that_fits_no_more(tmp_path: Path) -> None:
    export = make_run(tmp_path / "run")
    seal(export, make_keys(tmp_path)[0])
    (export / "README.md").write_text("# better\n")
    seal(export, None)
    assert not (export / SIGNATURE).exists()
    assert "it is not signed" in verify(export, None)[1]
